"""A repair of kombu's Redis transport for a prefetch count that goes down."""

from typing import Any


def read_every_reply(channel: Any) -> None:  # noqa: ANN401 — kombu is not typed
    """Have a channel read what it asked Redis for, also when its prefetch count fell meanwhile.

    kombu 5.7 asks with a BRPOP that waits. Should the count fall below what is held before the
    reply comes, kombu leaves the reply unread until something is acknowledged, and the reply may be
    a message, which no other worker gets any more. The count then is one too high for a while.
    """
    within_count = channel.qos.can_consume

    def can_consume() -> bool:
        return bool(channel._in_poll) or within_count()

    channel.qos.can_consume = can_consume
