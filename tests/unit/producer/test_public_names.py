"""The public names: `__all__` lists exactly what is exported."""

import inspect

import imagefleet_producer
from imagefleet_shared import errors
from imagefleet_shared.errors import ImagefleetError


def test_all_lists_exactly_the_public_names() -> None:
    public = {
        name
        for name, value in vars(imagefleet_producer).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(imagefleet_producer.__all__) == public


def test_all_lists_each_name_once() -> None:
    assert len(imagefleet_producer.__all__) == len(set(imagefleet_producer.__all__))


def test_every_error_can_be_caught_by_a_public_name() -> None:
    """Errors are rebuilt by class name: what is not imported cannot be caught."""
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, ImagefleetError) and name[0] != "_":
            assert getattr(imagefleet_producer, name, None) is value, name


def test_every_public_name_has_a_docstring() -> None:
    for name in imagefleet_producer.__all__:
        assert inspect.getdoc(getattr(imagefleet_producer, name)), name
