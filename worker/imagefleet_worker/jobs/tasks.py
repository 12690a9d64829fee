"""The Celery tasks: one per kind of job; each passes the job's id to the delivery."""

from celery import Celery

from imagefleet_shared.field_types import JobKind
from imagefleet_shared.routing import TASKS
from imagefleet_worker.jobs.delivery import Delivery


def register(app: Celery, kinds: tuple[JobKind, ...], delivery: Delivery) -> None:
    """Register the tasks of these kinds of job."""
    for kind in kinds:
        app.task(name=TASKS[kind], throws=(Exception,))(delivery.deliver)
