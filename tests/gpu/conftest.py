"""Markers by which `make gpu-check` decides which tests may run at the same time."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "whole_card: reads or limits the memory of the whole card; nothing else may run on it",
        "compiles: compiles on the CPU for minutes, so that other tests run beside it",
    ):
        config.addinivalue_line("markers", marker)
