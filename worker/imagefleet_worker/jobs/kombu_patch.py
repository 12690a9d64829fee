"""A fix for kombu's Redis transport when the prefetch count is lowered."""

from typing import Any


def read_every_reply(channel: Any) -> None:  # noqa: ANN401 — kombu is not typed
    """Make a channel read the reply to a pending BRPOP even if its prefetch count fell meanwhile.

    kombu 5.7 polls with a blocking BRPOP. If the count falls below the unacknowledged messages
    before the reply arrives, kombu leaves the reply unread until something is acknowledged; the
    reply may be a message, which no other worker can get any more. With this fix the worker has
    one message too many for a while instead.
    """
    within_count = channel.qos.can_consume

    def can_consume() -> bool:
        return bool(channel._in_poll) or within_count()

    channel.qos.can_consume = can_consume
