from pathlib import Path

import pytest

from imagefleet_worker.catalog.store import ModelStore
from tests.face_models import model_store


@pytest.fixture(scope="package")
def face_store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with the demo's detector, a parser that labels all as skin, and a random restorer."""
    return model_store(Path(tmp_path_factory.mktemp("faces")))
