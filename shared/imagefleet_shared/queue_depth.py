"""Backlog of the queues, and the number of workers that serve them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis import Redis

from imagefleet_shared.field_types import JobKind
from imagefleet_shared.routing import PRIORITIES, QUEUES, queue_list, serving_key

# KEYS: the workers of a kind, the lists of its queue. ARGV: the calling worker. By Redis's clock.
_COUNT: Final = """
local waiting = 0
for index = 2, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[index]) end
local now, mine = redis.call('TIME')[1], redis.call('ZSCORE', KEYS[1], ARGV[1])
local workers = redis.call('ZCOUNT', KEYS[1], now, '+inf')
if not mine or tonumber(mine) < tonumber(now) then workers = workers + 1 end
return {waiting, workers}
"""


@dataclass(frozen=True)
class Backlog:
    """Backlog of one kind of job."""

    waiting: int
    """Messages that no worker has received."""
    workers: int
    """Live workers that serve this kind, including the calling one."""


def read_backlog(redis: Redis, kinds: Sequence[JobKind], worker: str) -> dict[JobKind, Backlog]:
    """The backlog of each kind that a worker serves, whether or not it is announced yet."""
    count = redis.register_script(_COUNT)
    pipeline = redis.pipeline(transaction=False)
    for kind in kinds:
        lists = [queue_list(QUEUES[kind], priority) for priority in PRIORITIES]
        count(keys=[serving_key(kind), *lists], args=[worker], client=pipeline)
    return {kind: Backlog(*counts) for kind, counts in zip(kinds, pipeline.execute(), strict=True)}
