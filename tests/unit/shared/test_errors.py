"""The error tree: its documentation, and that errors are rebuilt from the ledger."""

import inspect
import json
import re

import pytest

from imagefleet_shared import errors
from imagefleet_shared.errors import (
    BrokerUnavailable,
    ImagefleetError,
    InvalidRequest,
    JobNotFound,
    JobTimeout,
    PoisonJob,
    UnknownCheckpoint,
    UnsupportedSize,
)
from imagefleet_shared.records import dump_error, load_error

CLASSES = [
    value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, ImagefleetError) and not name.startswith("_")
]
EXAMPLES: dict[str, object] = {
    "name": "mona-lisa",
    "known": ["demo", "demo-xl"],
    "what": "picture",
    "width": 10_000,
    "height": 20_000,
    "pixels": 50_000_000,
    "max_pixels": 4_194_304,
    "tokens": 900,
    "max_tokens": 750,
    "job_id": "0123abcd",
    "attempts": 3,
    "seconds": 1.5,
    "message": 'it is "broken", naïvely',
}


def example(cls: type[ImagefleetError]) -> ImagefleetError:
    """An error with plausible arguments, by the names of its constructor's parameters."""
    if cls is ImagefleetError:
        return cls("something")
    names = list(inspect.signature(cls).parameters)
    if names == ["args", "kwargs"]:
        return cls("something")
    return cls(*(EXAMPLES.get(name, f"some {name}") for name in names))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_is_rebuilt_from_the_ledger(cls: type[ImagefleetError]) -> None:
    error = example(cls)
    back = load_error(dump_error(error))
    assert type(back) is cls
    assert back.args == error.args
    assert str(back) == str(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_can_be_rebuilt_from_its_arguments(cls: type[ImagefleetError]) -> None:
    """As Celery does; anything else is lost."""
    error = example(cls)
    back = cls(*error.args)
    assert (back.args, str(back)) == (error.args, str(error))


@pytest.mark.parametrize("cls", CLASSES)
def test_arguments_are_plain_json(cls: type[ImagefleetError]) -> None:
    error = example(cls)
    assert json.loads(json.dumps(error.args)) == list(error.args)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_has_all_arguments_of_the_error(cls: type[ImagefleetError]) -> None:
    error = example(cls)
    for value in error.args:
        for word in value if isinstance(value, list) else [value]:
            # Sizes are printed as a product, 1.5 as it is.
            assert str(word) in str(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_docstring(cls: type[ImagefleetError]) -> None:
    assert cls.__doc__
    assert cls.__doc__.endswith(".") or ";" in cls.__doc__


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    documented: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:│   )*)(?:[├└]── )?([A-Z]\w+)(?:\s|$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + ("── " in line)
        path = [*path[:depth], match[2]]
        documented[match[2]] = path[-2] if depth else ""
    real = {
        cls.__name__: ""
        if cls is ImagefleetError
        else next(base.__name__ for base in cls.__mro__[1:] if not base.__name__.startswith("_"))
        for cls in CLASSES
    }
    assert documented == real


def test_an_unknown_class_becomes_the_base_class() -> None:
    error = load_error('{"type": "FromTheFuture", "args": ["it rained", 3]}')
    assert type(error) is ImagefleetError
    assert error.args == ("FromTheFuture", "it rained", 3)


@pytest.mark.parametrize("name", ["Sequence", "__builtins__", "_list"])
def test_only_our_own_errors_are_built_from_a_record(name: str) -> None:
    error = load_error(json.dumps({"type": name, "args": ["x"]}))
    assert type(error) is ImagefleetError


def test_messages_have_the_value_given_and_the_values_allowed() -> None:
    assert str(UnknownCheckpoint("fox", ["a", "b"])) == "unknown checkpoint 'fox'; known: a, b"
    assert str(UnknownCheckpoint("fox", [])) == "unknown checkpoint 'fox'; known: none"
    assert str(UnsupportedSize("picture", 100, 50, 4000)) == (
        "picture 100x50 has 5000 pixels; at most 4000 are allowed"
    )
    assert str(JobTimeout("j1", 2.0)) == "job j1 was not done within 2 s"
    assert "all 3 attempts" in str(PoisonJob("j1", 3))


def test_errors_are_split_by_who_must_act() -> None:
    assert issubclass(UnknownCheckpoint, InvalidRequest)
    assert not issubclass(BrokerUnavailable, InvalidRequest)
    assert not issubclass(JobNotFound, InvalidRequest)
