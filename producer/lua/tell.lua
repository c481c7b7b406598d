-- Append to the streams of running jobs what their answers have become. Batches of one edition are numbered from 1; an
-- edition is the answer from its beginning, as one run has it. Sent again, nothing is appended twice.
--
-- ARGV  1 now | 2 TTL ms of a stream
--       then per run: id, token, edition, how many batches of the edition before are in this one's first batch,
--       number of the first batch, how many, each batch (JSON list of deltas);
--       none: what it has told is void, and the job will run again
-- reply per run: told | again (from the beginning, in a next edition) | stale (another holds the job, or it has ended)
--
-- An entry of a stream has the field
--   d  a batch: a list of deltas
--   r  restarted: what stands before it is void. Nothing stands there any more
--   w  with d: it is the beginning of the answer, written again to keep the stream short. Who has read the entry of this
--      id has read all of it; empty: nobody has. What stands before it goes soon

local MOST = 1000 -- batches in a stream: the next edition has them as one
local GRACE = 100 -- batches of an edition by which readers have read what stands before it
local ttl = tonumber(ARGV[2])
local NOTHING = '' -- of the ledger's `teller`: what stands in the stream counts no more

local function has_told(teller) return teller and teller ~= NOTHING end

local function restart(key)
  redis.call('XTRIM', key, 'MAXLEN', 0) -- and no DEL: later entries go on from its last id
  redis.call('XADD', key, '*', 'r', '1')
end

-- Make room for another edition. Returns what its first batch is to say in w: that nothing is new in it only if it is made
-- of just the batches that stand in the stream.
local function begin(key, teller, token, told, again)
  if not teller then return nil end
  if string.sub(teller, 1, #token + 1) ~= token .. '/' then
    if has_told(teller) or redis.call('EXISTS', key) == 0 then restart(key) end -- its time may be over, and the r gone
    return nil
  end
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if last and told == again then return last[1] end
  redis.call('XTRIM', key, 'MAXLEN', 0)
  return ''
end

local function append(key, batch, beginning)
  if beginning then redis.call('XADD', key, '*', 'd', batch, 'w', beginning)
  else redis.call('XADD', key, '*', 'd', batch) end
end

local function take_back(id, teller)
  if not has_told(teller) then return 'told' end
  restart(K.events .. id)
  redis.call('HSET', K.ledger .. id, 'teller', NOTHING, 'told', 0)
  redis.call('PEXPIRE', K.events .. id, ttl)
  redis.pcall('PUBLISH', K.told .. id, '')
  return 'told'
end

local function tell(at)
  local id, token, edition, again = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local first, count = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local ledger, key, mine = K.ledger .. id, K.events .. id, token .. '/' .. edition
  local said = redis.call('HMGET', ledger, 'state', 'token', 'teller', 'told')
  if said[1] ~= 'running' or said[2] ~= token then return 'stale' end
  local teller, told, beginning = said[3], tonumber(said[4] or nil) or 0, nil
  if count == 0 then return take_back(id, teller) end
  if teller == mine and (told == 0 or redis.call('EXISTS', key) == 1) then
    if first > told + 1 then return 'again' end
  else
    if first ~= 1 or teller == mine then return 'again' end
    told, beginning = 0, begin(key, teller, token, told, again)
  end
  local before = told
  for number = told + 1, first + count - 1 do
    append(key, ARGV[at + 6 + number - first], number == 1 and beginning)
    told = number
  end
  if again > 0 and told >= GRACE then redis.call('XTRIM', key, 'MAXLEN', told) end
  redis.call('HSET', ledger, 'teller', mine, 'told', exact(told))
  redis.call('PEXPIRE', key, ttl)
  if told > before then redis.pcall('PUBLISH', K.told .. id, '') end
  return told >= MOST and 'again' or 'told'
end

local reply, at = {}, 3
while at < #ARGV do
  local ok, said = pcall(tell, at)
  reply[#reply + 1] = ok and said or 'stale'
  at = at + 6 + tonumber(ARGV[at + 5])
end
return reply
