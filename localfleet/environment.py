"""The environment of a local fleet's child processes."""

import os
from collections.abc import Mapping

_FOREIGN_SETTINGS = ("IMAGEFLEET_", "AWS_", "FLOWER_", "CELERY_", "WEED_", "S3_")


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment without the settings of any fleet, store or server, and `extra`."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_SETTINGS)
    }
    return inherited | dict(extra)
