"""`imagefleet-worker`: serve jobs on this host's GPUs, or on its CPU."""

import argparse
import logging
import socket
import sys

from imagefleet_shared.broker import connect
from imagefleet_shared.presence import live_workers
from imagefleet_shared.settings import BrokerSettings
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.supervisor import Supervisor, with_metrics_ports, worker_slots


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="imagefleet-worker",
        description="Serve Imagefleet jobs on this host's GPUs, or on its CPU.",
        epilog="Settings come from IMAGEFLEET_... environment variables; the README lists them.",
    )
    parser.add_argument(
        "--healthy",
        action="store_true",
        help="serve nothing; exit 0 if a worker of this host is in the fleet, else 1",
    )
    if parser.parse_args().healthy:
        sys.exit(0 if _healthy() else 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = WorkerSettings()
    try:
        slots = worker_slots(settings.device, settings.gpus, settings.lock_dir)
    except RuntimeError as exc:
        sys.exit(f"imagefleet-worker: {exc}")
    slots = with_metrics_ports(slots, settings.metrics_port)
    Supervisor(slots, settings.stall_timeout_s, settings.drain_timeout_s).run()


def _healthy() -> bool:
    workers = live_workers(connect(BrokerSettings(), retries=0))
    return any(worker.host == socket.gethostname() for worker in workers)


if __name__ == "__main__":
    main()
