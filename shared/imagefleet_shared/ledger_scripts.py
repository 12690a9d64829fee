"""The ledger's transitions as Lua scripts: each is one transaction in Redis, by Redis's clock.

Every script begins with PRELUDE. A job's record is the hash KEYS[1]; the sorted set KEYS[2] holds
the jobs that have not ended, scored by the time at which they are due for reconciliation: the end
of a running job's lease, the next check on a queued job's message.
"""

from typing import Final

PRELUDE: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local job, open = KEYS[1], KEYS[2]

local function get(field) return redis.call('HGET', job, field) end

local function notify(channel) redis.call('PUBLISH', channel, get('status')) end

local function finish(id, channel, status, field, value, ttl)
    redis.call('HSET', job, 'status', status, 'stage', 'done', 'ended_s', now, field, value)
    redis.call('ZREM', open, id)
    redis.call('EXPIRE', job, ttl)
    notify(channel)
end

local function late() local d = get('deadline_s'); return d ~= '' and now > tonumber(d) end

local function error(kind, id, value)
    local rest = value and ', ' .. value or ''
    return string.format('{"type": "%s", "args": ["%s"%s]}', kind, id, rest)
end

-- Ends a job that was canceled or is past its time limit; returns whether it did.
local function ended(id, channel, ttl)
    if get('cancel') ~= '' then
        finish(id, channel, 'canceled', 'error', error('JobCanceled', id), ttl)
    elseif late() then
        finish(id, channel, 'failed', 'error', error('JobTimeout', id, get('allowed_s')), ttl)
    else
        return false
    end
    return true
end
"""

# KEYS: job, open, sequence. ARGV: id, first check after s, allowed s or '', field, value, ...
SUBMIT: Final = """
if redis.call('EXISTS', job) == 1 then return tonumber(get('sequence')) end
local sequence = redis.call('INCR', KEYS[3])
local deadline = ARGV[3] ~= '' and now + ARGV[3] or ''
redis.call('HSET', job, 'status', 'queued', 'stage', 'queued', 'step', 0, 'steps', 0,
    'attempt', 0, 'token', '', 'worker', '', 'cancel', '', 'submitted_s', now,
    'deadline_s', deadline, 'allowed_s', ARGV[3], 'sequence', sequence, unpack(ARGV, 4))
redis.call('ZADD', open, now + ARGV[2], ARGV[1])
return sequence
"""

# ARGV: id, channel, worker, token, lease s, ttl s. Returns the record after the lease.
# Called twice with one token (the reply was lost), the same lease is granted twice.
LEASE: Final = """
local status = get('status')
local mine = status == 'running' and get('token') == ARGV[4]
if status ~= 'queued' and not mine then return false end
if ended(ARGV[1], ARGV[2], ARGV[6]) then return false end
if not mine then
    redis.call('HINCRBY', job, 'attempt', 1)
    redis.call('HSET', job, 'status', 'running', 'worker', ARGV[3], 'token', ARGV[4],
        'leased_s', now)
end
redis.call('ZADD', open, now + ARGV[5], ARGV[1])
notify(ARGV[2])
return redis.call('HGETALL', job)
"""

# KEYS: job, open, watched. ARGV: id, channel, token, lease s, stage, step, steps
RENEW: Final = """
if get('status') ~= 'running' or get('token') ~= ARGV[3] then return 'lost' end
redis.call('ZADD', open, now + ARGV[4], ARGV[1])
if get('stage') ~= ARGV[5] or get('step') ~= ARGV[6] or get('steps') ~= ARGV[7] then
    redis.call('HSET', job, 'stage', ARGV[5], 'step', ARGV[6], 'steps', ARGV[7])
    notify(ARGV[2])
end
if get('cancel') ~= '' then return 'canceled' end
if late() then return 'late' end
return redis.call('EXISTS', KEYS[3]) == 1 and 'watched' or 'held'
"""

# KEYS: job, open, preview. ARGV: id, channel, token, image, ttl s
PUBLISH_PREVIEW: Final = """
if get('status') ~= 'running' or get('token') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[5])
return 1
"""

# ARGV: id, channel, token, status, field, value, ttl s
END: Final = """
if get('token') ~= ARGV[3] then return 0 end
if get('status') == ARGV[4] then return 1 end
if get('status') ~= 'running' then return 0 end
finish(ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
return 1
"""

# KEYS: job, open, sequence. ARGV: id, channel, token, next check after s, ttl s.
# A requeued job was not at fault: the attempt does not count.
RELEASE: Final = """
if get('status') ~= 'running' or get('token') ~= ARGV[3] then return 0 end
if ended(ARGV[1], ARGV[2], ARGV[5]) then return 0 end
local sequence = redis.call('INCR', KEYS[3])
redis.call('HINCRBY', job, 'attempt', -1)
redis.call('HSET', job, 'status', 'queued', 'stage', 'queued', 'step', 0, 'steps', 0,
    'token', '', 'worker', '', 'sequence', sequence)
redis.call('ZADD', open, now + ARGV[4], ARGV[1])
notify(ARGV[2])
return sequence
"""

# ARGV: id, channel, ttl s
CANCEL: Final = """
local status = get('status')
if status == 'queued' then
    finish(ARGV[1], ARGV[2], 'canceled', 'error', error('JobCanceled', ARGV[1]), ARGV[3])
elseif status == 'running' then
    redis.call('HSET', job, 'cancel', 1)
end
return status
"""

# ARGV: id, channel, ttl s.
# While a lease lasts, its worker ends the job; a queued job needs no worker to end.
EXPIRE: Final = """
local status = get('status')
if status ~= 'queued' and status ~= 'running' then return 0 end
local leased_until = tonumber(redis.call('ZSCORE', open, ARGV[1]) or 0)
if status == 'running' and leased_until > now then return 0 end
return ended(ARGV[1], ARGV[2], ARGV[3]) and 1 or 0
"""

# KEYS: job, open, sequence, dead, list of the job's queue and priority.
# ARGV: id, channel, faults allowed, next check after s, ttl s, sequence header, attempts allowed.
# A fault is a worker lost while it ran the job. A worker lost while the job waited for its turn is
# not one: otherwise jobs that wait beside a job that kills workers would be given up with it.
# A queued job's message is surely lost when the oldest message of its list was published later:
# the list is first in, first out. A popped message that nobody leased looks the same, and a second
# message for a job does no harm: the lease is granted once.
RECONCILE: Final = """
local status = get('status')
if status ~= 'queued' and status ~= 'running' then redis.call('ZREM', open, ARGV[1]); return 0 end
local due = redis.call('ZSCORE', open, ARGV[1])
if not due or tonumber(due) > now then return 0 end
if ended(ARGV[1], ARGV[2], ARGV[5]) then return 0 end
if status == 'running' then
    local attempts, faults = tonumber(get('attempt')), tonumber(get('faults') or 0)
    if get('stage') ~= 'queued' then faults = redis.call('HINCRBY', job, 'faults', 1) end
    if faults >= tonumber(ARGV[3]) or attempts >= tonumber(ARGV[7]) then
        local poison = error('PoisonJob', ARGV[1], attempts)
        finish(ARGV[1], ARGV[2], 'failed', 'error', poison, ARGV[5])
        redis.call('LPUSH', KEYS[4], ARGV[1])
        return 0
    end
    redis.call('HSET', job, 'status', 'queued', 'stage', 'queued', 'step', 0, 'steps', 0,
        'token', '', 'worker', '')
    notify(ARGV[2])
else
    local oldest = redis.call('LINDEX', KEYS[5], -1)
    local sequence = oldest and cjson.decode(oldest).headers[ARGV[6]]
    if type(sequence) == 'number' and sequence <= tonumber(get('sequence')) then
        redis.call('ZADD', open, now + ARGV[4], ARGV[1])
        return 0
    end
end
local sequence = redis.call('INCR', KEYS[3])
redis.call('HSET', job, 'sequence', sequence)
redis.call('ZADD', open, now + ARGV[4], ARGV[1])
return sequence
"""
