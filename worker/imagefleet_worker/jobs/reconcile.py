"""Republishes jobs whose message was lost; one worker of the fleet does so at a time."""

import logging
from threading import Event, Thread

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from imagefleet_shared.broker import publish
from imagefleet_shared.ledger import Ledger

logger = logging.getLogger(__name__)

RECONCILE_S = 1


class Reconciler(Thread):
    """Reconciles the ledger every `RECONCILE_S` seconds, until closed."""

    def __init__(self, ledger: Ledger, celery: Celery, worker: str) -> None:
        super().__init__(name="reconcile", daemon=True)
        self._ledger = ledger
        self._celery = celery
        self._worker = worker
        self._closed = Event()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def run(self) -> None:
        while not self._closed.wait(RECONCILE_S):
            try:
                if self._ledger.lock_reconciler(self._worker, 3 * RECONCILE_S):
                    for wakeup in self._ledger.reconcile():
                        logger.info("republishing job %s: it had no message", wakeup.job_id)
                        publish(self._celery, wakeup)
            except (RedisError, OperationalError) as exc:
                logger.warning("not reconciled: %s", exc)
