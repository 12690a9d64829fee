"""Names that apps and workers share: tasks, queues, priorities, Redis keys."""

from typing import Final

from imagefleet_shared.field_types import JobKind, Priority

TASKS: Final[dict[JobKind, str]] = {
    "generate": "imagefleet.generate",
    "upscale": "imagefleet.upscale",
}
QUEUES: Final[dict[JobKind, str]] = {"generate": "generate", "upscale": "upscale"}

# kombu on Redis: 0 is served first; each step is a list of its own.
PRIORITIES: Final[dict[Priority, int]] = {"high": 0, "normal": 3, "low": 6}
PRIORITY_STEPS: Final = (0, 3, 6, 9)
PRIORITY_SEPARATOR: Final = "\x06\x16"

SEQUENCE_HEADER: Final = "imagefleet_sequence"
"""Message header: the sequence number of this publication."""

PREFIX: Final = "imagefleet:"
OPEN_KEY: Final = PREFIX + "open"
"""Sorted set of the jobs that have not ended; score: when one is due (Redis's clock, s)."""
DEAD_KEY: Final = PREFIX + "dead"
"""List of poison jobs' ids, newest first."""
SEQUENCE_KEY: Final = PREFIX + "sequence"
"""Counter of publications."""
RECONCILER_KEY: Final = PREFIX + "reconciler"
"""Lock of the one reconciler."""


def job_key(job_id: str) -> str:
    """Hash with the job's record."""
    return f"{PREFIX}job:{job_id}"


def events_channel(job_id: str) -> str:
    """Pub/sub channel that announces every change of the job's progress."""
    return f"{PREFIX}events:{job_id}"


def watched_key(job_id: str) -> str:
    """Exists while an app wants previews of the job."""
    return f"{PREFIX}watched:{job_id}"


def preview_key(job_id: str) -> str:
    """The latest preview of the job, base64."""
    return f"{PREFIX}preview:{job_id}"


def worker_key(name: str) -> str:
    """JSON that a live worker renews: what it serves and which models it has."""
    return f"{PREFIX}worker:{name}"


def serving_key(kind: JobKind) -> str:
    """Sorted set of the workers that serve this kind of job; score: when the announcement of one
    expires (Redis's clock, s)."""
    return f"{PREFIX}serving:{kind}"


def queue_list(queue: str, priority: Priority) -> str:
    """The Redis list of a queue's messages of one priority, as kombu names it."""
    step = PRIORITIES[priority]
    return queue if step == 0 else f"{queue}{PRIORITY_SEPARATOR}{step}"
