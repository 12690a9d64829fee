"""The Celery tasks: one per kind of request; each hands the job's id to the delivery."""

from celery import Celery

from imagefleet_shared.field_types import JobKind
from imagefleet_shared.routing import TASKS
from imagefleet_worker.jobs.delivery import Delivery


def register(app: Celery, kinds: tuple[JobKind, ...], delivery: Delivery) -> None:
    """Make the app take jobs of these kinds."""
    for kind in kinds:
        app.task(name=TASKS[kind], throws=(Exception,))(delivery.deliver)
