-- Renew leases; also ends passed deadlines and passes cancels on.
--
-- ARGV  1 now | 2 lease ms | 3 result TTL ms, then per run: id, token, epoch
-- reply per run: ours | cancel (ours, but stop the call) | taken (another runs it; go on) | over (the job has ended; stop the call)

local now, length = clock(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command
sweep(now, ARGV[3])
local worker = holder_of(ARGV[5])
if worker then seen(now, worker) end

local function renew(id, token, epoch)
  local ledger = read(id)
  if not ledger or FINAL[ledger.state] or ledger.epoch ~= epoch then return 'over' end
  if ledger.state == 'running' and ledger.token ~= token then return 'taken' end
  -- Nobody holds it: the lease ran out, or a failover forgot the claim. Take it back, unless this very run gave it back.
  if ledger.state ~= 'running' and ledger.given_back == token then return 'over' end
  lease(id, ledger, token, ledger.claimed or now, now + length, length)
  return ledger.cancel and 'cancel' or 'ours'
end

local reply = {}
for i = 4, #ARGV, 3 do
  local ok, said = pcall(renew, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  reply[#reply + 1] = ok and said or 'over'
end
tidy()
return reply
