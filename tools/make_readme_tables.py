"""Write the README's tables from the code, and its figures from the benchmarks' results.

    python -m tools.make_readme_tables [--check]

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import re
import sys
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imagefleet_producer import (
    FaceRestore,
    GenerateRequest,
    HiresPass,
    Inpaint,
    LoRA,
    TextualInversion,
    UpscalePass,
    UpscaleRequest,
)
from imagefleet_shared.settings import BrokerSettings, StorageSettings
from imagefleet_worker.settings import WorkerSettings
from tools.benchmark_results import speed_lines

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Rewrite the README; with `--check`, only fail if it is out of date."""
    before = README.read_text()
    after = fill_tables(before)
    if "--check" in sys.argv:
        sys.exit(0 if before == after else "README.md: run python -m tools.make_readme_tables")
    README.write_text(after)


def fill_tables(readme: str) -> str:
    """Fill the README's tables from the code."""
    tables = {
        "broker settings": _settings(BrokerSettings),
        "storage settings": _settings(StorageSettings),
        "worker settings": _settings(WorkerSettings),
        "GenerateRequest": _fields(GenerateRequest),
        "LoRA": _fields(LoRA),
        "TextualInversion": _fields(TextualInversion),
        "HiresPass": _fields(HiresPass),
        "Inpaint": _fields(Inpaint),
        "FaceRestore": _fields(FaceRestore),
        "UpscalePass": _fields(UpscalePass),
        "UpscaleRequest": _fields(UpscaleRequest),
        "speed": speed_lines(),
    }
    for name, table in tables.items():
        block = re.compile(f"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert block.search(readme), f"README.md has no markers for the table {name!r}"
        readme = block.sub(lambda match, table=table: match[1] + table + match[2], readme)
    return readme


def _settings(model: type[BaseModel]) -> str:
    rows = [
        (f"`IMAGEFLEET_{name.upper()}`", _default(field), _text(field))
        for name, field in model.model_fields.items()
    ]
    return _table(("variable", "default", "meaning"), rows)


def _fields(model: type[BaseModel]) -> str:
    rows = [
        (f"`{name}`", _type(field), _default(field), _text(field))
        for name, field in model.model_fields.items()
    ]
    return _table(("field", "type", "default", "meaning"), rows)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if value == ():
        return "none"
    if isinstance(value, tuple):
        value = ",".join(str(part) for part in value)
    return f"`{value}`" if value != "" else '`""`'


def _type(field: FieldInfo) -> str:
    bounds = [_bound(bound) for bound in field.metadata]
    text = " ".join([_name(field.annotation), *filter(None, bounds)])
    return text.replace("characters", "items") if text.startswith("list") else text


def _name(annotation: Any) -> str:  # noqa: ANN401 — an annotation can be any object
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        limits = [_bound(part) for item in metadata for part in getattr(item, "metadata", [item])]
        return " ".join([_name(inner), *filter(None, limits)])
    if origin is tuple:
        parts = get_args(annotation)
        if parts[-1] is not Ellipsis:
            return f"pair of {_name(parts[0])}"
        return f"list of {_name(parts[0])}"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return " or ".join(_name(part) for part in get_args(annotation))
    return "None" if annotation is NoneType else str(annotation.__name__)


def _bound(constraint: object) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    parts = [
        f"{sign} {getattr(constraint, attribute)}"
        for attribute, sign in signs.items()
        if getattr(constraint, attribute, None) is not None
    ]
    length = getattr(constraint, "max_length", None)
    return ", ".join([*parts, *([f"≤ {length} characters"] if length else [])])


if __name__ == "__main__":
    main()
