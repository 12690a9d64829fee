"""Which files and folders under a model folder are models, and of which kind."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from imagefleet_shared.errors import FileUnavailable
from imagefleet_worker.weights.diffusers_index import INDEX

NamedKind = Literal["checkpoint", "lora", "embedding", "upscaler", "face"]
"""Kinds that requests name; `face` is a face restorer."""
Kind = NamedKind | Literal["face_part"]
"""Also the models that face restorers depend on: `face_part`, a face detector or parser."""

_FOLDERS: dict[str, Kind] = {
    "checkpoints": "checkpoint",
    "stable-diffusion": "checkpoint",
    "loras": "lora",
    "lora": "lora",
    "lycoris": "lora",
    "embeddings": "embedding",
    "upscalers": "upscaler",
    "esrgan": "upscaler",
    "realesrgan": "upscaler",
    "swinir": "upscaler",
    "dat": "upscaler",
    "hat": "upscaler",
    "scunet": "upscaler",
    "faces": "face",
    "gfpgan": "face",
    "codeformer": "face",
    "restoreformer": "face",
}
_SUFFIXES: dict[Kind, set[str]] = {
    # Pickles are included so that requesting one raises an error with the reason.
    "checkpoint": {".safetensors", ".ckpt", ".pt", ".pth"},
    "lora": {".safetensors", ".pt", ".bin"},
    "embedding": {".safetensors", ".pt", ".bin"},
    "upscaler": {".safetensors", ".pth"},
    "face": {".safetensors", ".pth"},
    "face_part": {".safetensors", ".pth"},
}
_FACE_PARTS = ("detection_", "parsing_")
"""Prefixes of facexlib's file names; A1111 stores them beside its face restorers."""


def model_paths(root: Path, kind: Kind) -> list[Path]:
    """The models of a kind: files and, for checkpoints, diffusers folders; resolved and unique.

    Hidden entries, links to folders, and links that lead out of the root are skipped.

    Raises:
        FileUnavailable: the root or a folder in it cannot be read.
    """
    real_root = root.resolve()
    found: set[Path] = set()
    try:
        for folder in real_root.iterdir():
            known = _FOLDERS.get(folder.name.lower())
            if known == ("face" if kind == "face_part" else kind) and _is_real_folder(folder):
                found.update(path.resolve() for path in _walk(folder, kind))
    except OSError as exc:
        raise FileUnavailable(f"the model folder {root} cannot be read: {exc}") from exc
    return sorted(path for path in found if path.is_relative_to(real_root))


def model_kind(path: PurePosixPath) -> Kind | None:
    """The kind of a file by its path below a model folder; None if it is not a model."""
    kind = _FOLDERS.get(path.parts[0].lower())
    hidden = any(part.startswith(".") for part in path.parts)
    if kind is None or hidden or len(path.parts) < 2:
        return None
    if kind == "face" and path.name.lower().startswith(_FACE_PARTS):
        kind = "face_part"
    return kind if path.suffix.lower() in _SUFFIXES[kind] else None


def diffusers_folders(paths: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    """The diffusers folders among the checkpoints, given all files below a model folder."""
    return {
        path.parent
        for path in paths
        if path.name == INDEX
        and len(path.parts) > 2
        and _FOLDERS.get(path.parts[0].lower()) == "checkpoint"
    }


def _walk(folder: Path, kind: Kind) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if _is_real_folder(entry):
            if kind == "checkpoint" and (entry / INDEX).is_file():
                yield entry
            else:
                yield from _walk(entry, kind)
        elif entry.suffix.lower() in _SUFFIXES[kind] and entry.is_file():
            is_part = entry.name.lower().startswith(_FACE_PARTS)
            if kind not in ("face", "face_part") or is_part == (kind == "face_part"):
                yield entry


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
