-- Write the outcomes of runs. Every additive effect happens once per attempt, however often the call is sent.
--
-- ARGV  1 now | 2 '1': no claim follows, wake others for what goes back
--       then per outcome: id, token, epoch, kind, delay ms, ttl ms, error code or '',
--       attempt (JSON, '' if no call was made), prompt, completion, reasoning, cached and total tokens, ticks or '', result or ''
--       kind: succeeded | failed | cancelled | expired   end the job with `result`
--             retry (after delay) | throttled (its model pauses, at least for delay) | released   give it back
-- reply per outcome: done | back | over (the job has a result) | stale (another holds it) | gone (no ledger) | 'error: ...'

local WIDTH = 15
local now, nobody_claims = clock(ARGV[1]), ARGV[2] == '1'
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command

local returned, answered = {}, {} -- lane -> true; model -> latest claim that was answered

-- Failures in which the provider has not answered: they prove nothing about its pause.
local SILENT = { unavailable = true, provider_error = true, timeout = true, rate_limited = true, no_credit = true, bad_key = true }
local COUNTERS = { 'prompt_tokens', 'completion_tokens', 'reasoning_tokens', 'cached_prompt_tokens', 'total_tokens', 'cost_in_usd_ticks' }

local day, sums = K.usage .. exact(math.floor(now / 86400000)), {}

-- Small amounts are summed here, so that the day's books are written once a call; a long one goes there as it is written.
local function add(counter, amount)
  if #amount < 12 then sums[counter] = (sums[counter] or 0) + tonumber(amount)
  else redis.call('HINCRBY', day, counter, amount) end
end

-- The books of the job and of the day; guarded by the attempt's own field.
local function book(at, id, token, ledger)
  local attempt = ARGV[at + 7]
  if attempt == '' or redis.call('HSETNX', K.ledger .. id, 'attempt:' .. token, attempt) == 0 then return end
  add(ledger.model .. ':attempts', '1')
  for i, counter in ipairs(COUNTERS) do
    local amount = ARGV[at + 7 + i]
    if amount ~= '' and amount ~= '0' then add(ledger.model .. ':' .. counter, amount) end
  end
end

-- One counter that takes no more must not keep the others from being written.
local function close_the_day()
  for counter, sum in pairs(sums) do redis.pcall('HINCRBY', day, counter, exact(sum)) end
  redis.pcall('PEXPIRE', day, 90 * 86400000)
end

-- Pause a model for the fleet. Calls claimed before the last pause say nothing new.
local function pause(model, claimed, floor, reason)
  local meter = K.meter .. model
  local old = redis.call('HMGET', meter, 'strikes', 'since', 'until')
  local strikes, ends = tonumber(old[1] or 0), tonumber(old[3] or 0)
  if not old[2] or claimed >= tonumber(old[2]) then
    strikes = strikes + 1
    redis.call('HSET', meter, 'since', exact(now))
  end
  ends = math.max(ends, now + math.max(floor, math.min(60000, 1000 * 2 ^ (strikes - 1))))
  redis.call('HSET', meter, 'strikes', exact(strikes), 'until', exact(ends), 'reason', reason)
  redis.call('HDEL', meter, 'probe')
  redis.call('PEXPIRE', meter, exact(ends - now + 600000))
end

local function settle(at)
  local id, token, epoch, kind = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local ledger = read(id)
  if not ledger then return 'gone' end
  pcall(book, at, id, token, ledger) -- the attempt stands in the ledger before the day's books are touched
  local holder = ledger.state == 'running' and ledger.token == token
  if holder and kind == 'throttled' then pause(ledger.model, ledger.claimed, tonumber(ARGV[at + 4]), ARGV[at + 6]) end
  if holder and (kind == 'succeeded' or kind == 'failed' and not SILENT[ARGV[at + 6]]) and ARGV[at + 7] ~= '' then
    answered[ledger.model] = math.max(answered[ledger.model] or 0, ledger.claimed)
  end
  if FINAL[ledger.state] then return 'over' end
  -- A success is paid for: it is taken from whichever run of this epoch brings it first.
  if kind == 'succeeded' and epoch == ledger.epoch or holder and FINAL[kind] then
    finish(now, id, ledger, kind, ARGV[at + 14], ARGV[at + 5])
    return 'done'
  end
  if not holder then return 'stale' end
  unlease(id, ledger)
  redis.call('HSET', K.ledger .. id, 'given_back', token)
  if kind == 'retry' then redis.call('HINCRBY', K.ledger .. id, 'spent', 1) end
  if ARGV[at + 6] == 'timeout' then redis.call('HINCRBY', K.ledger .. id, 'timeouts', 1) end
  if kind == 'released' then redis.call('HINCRBY', K.ledger .. id, 'releases', 1) end
  if ledger.cancel then cancelled(now, id, ledger, ARGV[at + 5]) return 'done' end
  returned[ledger.lane] = true
  if kind == 'retry' then delay(id, ledger, now + tonumber(ARGV[at + 4])) else queue(id, ledger) end
  return 'back'
end

local reply = {}
for at = 3, #ARGV, WIDTH do
  local ok, said = pcall(settle, at)
  if ok then reply[#reply + 1] = said
  else reply[#reply + 1] = 'error: ' .. tostring(type(said) == 'table' and said.err or said) end
end
if next(sums) then close_the_day() end
tidy()
-- An answer to a call that was claimed after the pause began ends the pause.
for model, claimed in pairs(answered) do
  local since = redis.call('HGET', K.meter .. model, 'since')
  if since and claimed > tonumber(since) then
    redis.call('DEL', K.meter .. model)
    wake(model)
  end
end
if nobody_claims then for lane in pairs(returned) do wake(lane) end end
return reply
