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
  put(meter, name, old and new and debt > 0 and now + math.min(MOST_DEBT, debt * old / new) or nil)
end

local function write(name, text)
  if text == '' then redis.call('HDEL', K.limits, model .. ':' .. name)
  else redis.call('HSET', K.limits, model .. ':' .. name, text) end
end

local function set()
  local rpm, tpm = rates(now, meter) -- at which it was charged, which a 429 may have made less than the limits
  rescale('requests', rpm, tonumber(ARGV[4]))
  rescale('tokens', tpm, tonumber(ARGV[5]))
  for _, name in ipairs({ 'factor', 'learned', 'least' }) do
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
