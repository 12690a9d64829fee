"""Entry point of one worker process; the supervisor starts it."""

import argparse
import logging

import torch

from imagefleet_shared.settings import StorageSettings
from imagefleet_shared.storage import open_store
from imagefleet_worker.build import build_parts
from imagefleet_worker.heartbeat import die_with_parent
from imagefleet_worker.settings import WorkerSettings
from imagefleet_worker.worker import Worker


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--beat-fd", type=int)
    arguments = parser.parse_args()
    die_with_parent()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings, store = WorkerSettings(), open_store(StorageSettings())
    parts = build_parts(settings, torch.device(arguments.device), store)
    Worker(arguments.name, settings, parts, store, arguments.beat_fd).run()


if __name__ == "__main__":
    main()
