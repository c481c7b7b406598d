-- Write the outcomes of runs. Every additive effect happens once per attempt, however often the call is sent.
--
-- ARGV  1 now | 2 '1': no claim follows, wake others for what goes back | 3 account that pays | 4 luck, from 0 to 1
--       5 accounts that pay for some models (JSON: {{pattern, account, -1}, ...}, or '')
--       then per outcome: id, token, epoch, kind, delay ms, ttl ms, error code or '',
--       attempt (JSON, '' if no call was made), prompt, completion, reasoning, cached and total tokens, ticks or '', result or ''
--       kind: succeeded | failed | cancelled | expired   end the job with `result`
--             retry (after delay) | throttled (unspent: its model or account pauses) | released   give it back
-- reply per outcome: done | back | pausing (back, and its model or account pauses from now on) | over (the job has a result) |
--       stale (another holds it) | gone (no ledger) | 'error: ...'

local WIDTH, FIRST = 15, 6
local MOST_THROTTLES = 10 -- of one job, while others of its model are answered
local MOST_LESSONS = 4
local NEXT_PROBE = 1000 -- ms
local UNSPENT_REST = 500 -- ms for which a job waits that comes back unspent, while its model does not pause
local now, nobody_claims, luck = clock(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[4]) or 0
route(ARGV[5], ARGV[3])
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command

local returned, answered = {}, {} -- lane -> true; model -> latest claim that was answered
local spent = {} -- model -> tokens

-- Failures in which the provider has not answered: they prove nothing about its pause.
local SILENT = { unavailable = true, provider_error = true, timeout = true, rate_limited = true, no_credit = true, bad_key = true }
local OF_THE_ACCOUNT = { no_credit = true, bad_key = true }
local COUNTERS = { 'prompt_tokens', 'completion_tokens', 'reasoning_tokens', 'cached_prompt_tokens', 'total_tokens', 'cost_in_usd_ticks' }

local day, sums = K.usage .. exact(math.floor(now / 86400000)), {}

-- Small amounts are summed here, so that the day's books are written once a call; a long one goes there as it is written.
local function add(counter, amount)
  if #amount < 12 then sums[counter] = (sums[counter] or 0) + tonumber(amount)
  else redis.call('HINCRBY', day, counter, amount) end
end

local names_of = {} -- model -> names of its counters
local function counters_of(model)
  local names = names_of[model]
  if not names then
    names = { attempts = model .. ':attempts' }
    for i, counter in ipairs(COUNTERS) do names[i] = model .. ':' .. counter end
    names_of[model] = names
  end
  return names
end

-- The books of the job and of the day; guarded by the attempt's own field.
local function book(at, id, token, ledger)
  local attempt = ARGV[at + 7]
  if attempt == '' or redis.call('HSETNX', K.ledger .. id, 'attempt:' .. token, attempt) == 0 then return end
  local names = counters_of(ledger.model)
  add(names.attempts, '1')
  for i = 1, #COUNTERS do
    local amount = ARGV[at + 7 + i]
    if amount ~= '' and amount ~= '0' then add(names[i], amount) end
  end
  spent[ledger.model] = (spent[ledger.model] or 0) + (tonumber(ARGV[at + 12]) or 0)
end

-- One counter that takes no more must not keep the others from being written.
local function close_the_day()
  for counter, sum in pairs(sums) do redis.pcall('HINCRBY', day, counter, exact(sum)) end
  redis.pcall('PEXPIRE', day, 90 * 86400000)
end

-- What a run used is on the meter instead of what it was thought to use. A run that made no call used nothing, one that
-- was refused no tokens; what is given back is of the last minute only.
local function correct(at, id, ledger, kind)
  local meter = meter_of(ledger.model)
  if not (meter.rpm or meter.tpm or meter.learned) then return end
  local is_young, made_call = ledger.claimed > now - MOST_DEBT, ARGV[at + 7] ~= ''
  if not made_call and is_young then charge_requests(now, meter, -1) end
  local charged = meter.tpm and tonumber(redis.call('HGET', K.ledger .. id, 'charged') or nil)
  if not charged then return end
  local used = tonumber(ARGV[at + 12]) or 0
  if used == 0 and made_call and kind ~= 'throttled' then return end -- it told nothing
  if used > charged or is_young then charge_tokens(now, meter, used - charged) end
end

local lessons = {} -- model -> answers learned from in this call: a few are enough

-- Learn from an answer what the next jobs of its model may use.
local function learn_from(at, id, ledger)
  local taken = lessons[ledger.model] or 0
  if taken == MOST_LESSONS then return end
  lessons[ledger.model] = taken + 1
  local prompt, reasoning, total = tonumber(ARGV[at + 8]) or 0, tonumber(ARGV[at + 10]) or 0, tonumber(ARGV[at + 12]) or 0
  if total > 0 then learn(meter_of(ledger.model), estimate_in(id), prompt, total - prompt - reasoning, reasoning) end
end

-- The provider did not take a call. From the tenth in a row on none is spent; the model pauses when the row is also as
-- long as what is in flight, since refusals come sooner than answers, or when this was the one that tried whether a
-- pause may end. Returns whether it is unspent, and whether the model pauses since just now.
local function count_refusal(ledger)
  local meter = meter_of(ledger.model)
  put(meter, 'failures', (meter.failures or 0) + 1)
  local is_half_open = meter.strikes and HALF_OPEN[meter.reason]
  if meter.failures < OUTAGE and not is_half_open then return false, false end
  if meter.failures < redis.call('ZCARD', K.running .. ledger.model) and not is_half_open then return true, false end
  return true, pause(now, meter, ledger.claimed, 0, 'unavailable', luck)
end

-- The provider said 429. Returns whether the model pauses since just now, and whether this job has had enough of it.
local function throttle(id, ledger, delay)
  local meter = meter_of(ledger.model)
  local is_new = pause(now, meter, ledger.claimed, delay, 'rate_limited', luck)
  drop(now, meter, ledger.claimed)
  local before = redis.call('HMGET', K.ledger .. id, 'throttles', 'throttled')
  local throttles = tonumber(before[1] or nil) or 0
  if (meter.answered or 0) > (tonumber(before[2] or nil) or 0) then throttles = throttles + 1 end
  redis.call('HSET', K.ledger .. id, 'throttles', exact(throttles), 'throttled', exact(now))
  return is_new, throttles >= MOST_THROTTLES
end

-- Returns whether the account pauses since just now, and not again after one job tried.
local function pause_for_the_account(ledger, reason)
  local account = account_of(ledger.model)
  local known = account_pause(account)
  if known and not is_since(now, ledger.claimed, known.since) then return false end
  pause_account(now, account, reason, luck)
  return not known
end

-- If this run was to find out whether a pause may end, it has not: another one may, at once if it was only given back.
local function pass_probe_on(ledger, kind)
  local meter = meter_of(ledger.model)
  if not meter.probe or ledger.claimed < (meter.since or 0) then return end
  put(meter, 'probe', kind ~= 'released' and now + NEXT_PROBE or nil)
end

-- A call did not leave its worker. That is the provider's doing only if nobody else has a call under way; else it is one
-- worker without a network, which rests by itself and must not stop the others. Returns whether the model pauses.
local function count_unreached(ledger)
  local meter = meter_of(ledger.model)
  put(meter, 'unreached', (meter.unreached or 0) + 1)
  local is_row = (meter.failures or 0) + meter.unreached >= OUTAGE or meter.strikes and HALF_OPEN[meter.reason]
  if is_row and redis.call('ZCARD', K.running .. ledger.model) <= 1 then -- itself
    return pause(now, meter, ledger.claimed, 0, 'unavailable', luck)
  end
  pass_probe_on(ledger, 'released')
  return false
end

-- What a failure means for the other jobs of its model. Returns the kind that the outcome has in its light, whether
-- something pauses because of it, and whether the job itself is to fail.
local function heed(id, ledger, kind, reason, delay, was_sent)
  if reason == 'unavailable' and not was_sent then return kind, count_unreached(ledger), false end
  if reason == 'unavailable' then
    local is_outage, is_new = count_refusal(ledger)
    return is_outage and 'throttled' or kind, is_new, false
  end
  pass_probe_on(ledger, kind)
  if kind ~= 'throttled' then return kind, false, false end
  if OF_THE_ACCOUNT[reason] then return kind, pause_for_the_account(ledger, reason), false end
  return kind, throttle(id, ledger, delay)
end

local function settle(at)
  local id, token, epoch, kind = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local wait, ttl, reason = tonumber(ARGV[at + 4]), ARGV[at + 5], ARGV[at + 6]
  local ledger = read(id)
  if not ledger then return 'gone' end
  pcall(book, at, id, token, ledger) -- the attempt stands in the ledger before the day's books are touched
  local holder = ledger.state == 'running' and ledger.token == token
  local is_pausing, is_enough = false, false
  if holder then
    correct(at, id, ledger, kind)
    if kind == 'succeeded' then learn_from(at, id, ledger) end
    if (kind == 'succeeded' or kind == 'failed' and not SILENT[reason]) and ARGV[at + 7] ~= '' then
      answered[ledger.model] = math.max(answered[ledger.model] or 0, ledger.claimed)
    else kind, is_pausing, is_enough = heed(id, ledger, kind, reason, wait, ARGV[at + 7] ~= '') end
  end
  if FINAL[ledger.state] then return 'over' end
  -- A success is paid for: it is taken from whichever run of this epoch brings it first.
  if kind == 'succeeded' and epoch == ledger.epoch or holder and FINAL[kind] then
    finish(now, id, ledger, kind, ARGV[at + 14], ttl)
    return 'done'
  end
  if not holder then return 'stale' end
  unlease(id, ledger)
  redis.call('HSET', K.ledger .. id, 'given_back', token)
  if kind == 'retry' then redis.call('HINCRBY', K.ledger .. id, 'spent', 1) end
  if reason == 'timeout' then redis.call('HINCRBY', K.ledger .. id, 'timeouts', 1) end
  if kind == 'released' then redis.call('HINCRBY', K.ledger .. id, 'releases', 1) end
  if ledger.cancel then cancelled(now, id, ledger, ttl) return 'done' end
  if is_enough then
    local why = 'throttled ' .. MOST_THROTTLES .. ' times, while other jobs of its model were answered'
    finish(now, id, ledger, 'failed', verdict(now, id, ledger, 'failed', 'rate_limited', why), ttl)
    return 'done'
  end
  returned[ledger.lane] = true
  local is_unspent = kind == 'throttled' and reason == 'unavailable' and not is_paused(now, ledger.model)
  if is_unspent then wait = math.max(wait, UNSPENT_REST) end
  if kind == 'retry' or is_unspent then delay(id, ledger, now + wait) else queue(id, ledger) end
  return is_pausing and 'pausing' or 'back'
end

-- An answer ends the pause of its model, and of the account, if it is to a call that was claimed after that began.
local function heed_answers()
  local latest = {} -- by account
  for model, claimed in pairs(answered) do
    local meter, account = meter_of(model), account_of(model)
    latest[account] = math.max(latest[account] or 0, claimed)
    put(meter, 'answered', now)
    if meter.failures then put(meter, 'failures', nil) end
    if meter.unreached then put(meter, 'unreached', nil) end
    if meter.since and (claimed > meter.since or meter.since > now) then
      end_pause(meter)
      wake(model)
    end
  end
  for account, claimed in pairs(latest) do
    local pause = account_pause(account)
    if pause and (claimed > pause.since or pause.since > now) then end_account_pause(account) end
  end
end

local reply = {}
for at = FIRST, #ARGV, WIDTH do
  local ok, said = pcall(settle, at)
  if ok then reply[#reply + 1] = said
  else reply[#reply + 1] = 'error: ' .. tostring(type(said) == 'table' and said.err or said) end
end
heed_answers()
for model, tokens in pairs(spent) do
  if tokens > 0 then note_use(now, meter_of(model), 0, tokens) end
end
write_meters()
if next(sums) then close_the_day() end
tidy()
if nobody_claims then
  for lane in pairs(returned) do wake(lane) end
  for model in pairs(left) do
    if meter_of(model).in_flight then wake(model) end
  end
end
return reply
