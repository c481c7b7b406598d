-- Set the limits of a model, or hold it.
--
-- ARGV  1 now | 2 set | fill (unless the model has any) | pause | resume | 3 model | 4 requests/min | 5 tokens/min | 6 calls in flight;
--       '' for no limit
-- reply set | kept (fill: it has limits)

local now, verb, model = clock(ARGV[1]), ARGV[2], ARGV[3]
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command
local meter = meter_of(model)

-- What is used of a limit is kept as time, which passes faster under a higher one.
local function rescale(name, old, new)
  if not meter[name] then return end
  local debt = meter[name] - now
  if not (old and new) then put(meter, name, nil)
  elseif debt > 0 then put(meter, name, now + math.min(MOST_DEBT, debt * old / new)) end
end

local function write(name, text)
  if text == '' then redis.call('HDEL', K.limits, model .. ':' .. name)
  else redis.call('HSET', K.limits, model .. ':' .. name, text) end
end

-- What 429s have taught is forgotten when somebody knows better, not when the same is said again.
local function is_said_already()
  local before = redis.call('HMGET', K.limits, model .. ':rpm', model .. ':tpm', model .. ':in_flight')
  return (before[1] or '') == ARGV[4] and (before[2] or '') == ARGV[5] and (before[3] or '') == ARGV[6]
end

local function set()
  if is_said_already() then return end
  local rpm, tpm = rates(now, meter) -- at which it was charged, which a 429 may have made less than the limits
  rescale('requests', rpm, tonumber(ARGV[4]))
  rescale('tokens', tpm, tonumber(ARGV[5]))
  for _, name in ipairs({ 'factor', 'learned', 'least', 'pressed', 'grown' }) do
    if meter[name] then put(meter, name, nil) end
  end
  for i, name in ipairs({ 'rpm', 'tpm', 'in_flight' }) do write(name, ARGV[i + 3]) end
end

if verb == 'fill' and (meter.rpm or meter.tpm or meter.in_flight) then return 'kept' end
if verb == 'pause' then write('paused', '1')
elseif verb == 'resume' then
  write('paused', '')
  end_pause(meter)
else set() end
write_meters()
wake(model)
return 'set'
