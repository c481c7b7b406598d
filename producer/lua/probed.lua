-- A worker found out whether a paused account works again.
--
-- ARGV  1 now | 2 account | 3 works | refused (or not to be asked) | gone (nobody uses it now) | 4 luck, from 0 to 1
-- reply open (one job goes first) | paused | none (there is no pause)

local now, account, said, luck = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command
local known = account_pause(account)
if not known then return 'none' end
if said == 'gone' then
  end_account_pause(account)
  return 'none'
end
if said == 'works' then
  redis.call('HSET', K.account .. account, 'state', 'open', 'until', exact(now))
  redis.call('HDEL', K.account .. account, 'probe')
  wake_all()
  return 'open'
end
pause_account(now, account, nil, luck)
return 'paused'
