"""Configuration of Celery and of Redis connections."""

from celery import Celery
from kombu import Exchange, Queue
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from imagefleet_shared.errors import ImagefleetError
from imagefleet_shared.records import Wakeup
from imagefleet_shared.routing import PRIORITIES, PRIORITY_STEPS, QUEUES, SEQUENCE_HEADER, TASKS
from imagefleet_shared.settings import BrokerSettings

HEALTH_CHECK_S = 10


def make_celery(settings: BrokerSettings) -> Celery:
    """A Celery app for both sides: JSON only, no result backend, timeouts on every socket.

    The visibility timeout stays at kombu's default of an hour: the ledger decides who runs a job,
    and a redelivered message finds its job leased or ended.
    """
    app = Celery("imagefleet", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_queues=[Queue(name, Exchange(name), name) for name in QUEUES.values()],
        task_default_queue=QUEUES["generate"],
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_prefetch_multiplier=1,
        # The worker controls its prefetch count itself, after a lost connection too.
        worker_enable_prefetch_count_reduction=False,
        # The worker's app.py and apps configure their own logging.
        worker_hijack_root_logger=False,
        # The worker survives any outage of Redis.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # With kombu's default of no timeout, a half-open connection hangs a worker for ever.
            "socket_timeout": settings.socket_timeout_s,
            "socket_connect_timeout": settings.connect_timeout_s,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_S,
            "priority_steps": list(PRIORITY_STEPS),
            "queue_order_strategy": "priority",
        },
    )
    return app


def connect(settings: BrokerSettings, *, retries: int) -> Redis:
    """A Redis client for the ledger, strings decoded.

    Args:
        settings: where Redis is.
        retries: how often a call is retried after a lost connection, with pauses from 50 ms up to
            1 s: few for apps, which should learn of an outage soon; many for workers.

    Raises:
        ImagefleetError: the URL is invalid.
    """
    try:
        return Redis.from_url(
            settings.redis_url,
            decode_responses=True,
            socket_timeout=settings.socket_timeout_s,
            socket_connect_timeout=settings.connect_timeout_s,
            socket_keepalive=True,
            health_check_interval=HEALTH_CHECK_S,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), retries),
        )
    except ValueError:  # Its message may contain a part of the password.
        raise ImagefleetError(
            "redis_url must be redis://[user:password@]host:port/db, or rediss://...; "
            "what was given is something else"
        ) from None


def publish(app: Celery, wakeup: Wakeup) -> None:
    """Wake a worker: the message carries the job's id and nothing else.

    Raises:
        kombu.exceptions.OperationalError: Redis is unreachable; the reconciler will publish.
    """
    app.send_task(
        TASKS[wakeup.kind],
        args=[wakeup.job_id],
        task_id=wakeup.job_id,
        queue=QUEUES[wakeup.kind],
        priority=PRIORITIES[wakeup.priority],
        headers={SEQUENCE_HEADER: wakeup.sequence},
        retry=False,
    )
