"""LoRA aliases: the names they were trained under, by which A1111 finds renamed files."""

from collections.abc import Sequence

from imagefleet_worker.catalog.model_file import ModelFile

# A1111 ignores these aliases.
_IGNORED = {"none", "addams"}


def find_by_alias(files: Sequence[ModelFile], alias: str) -> list[ModelFile]:
    """The file with the alias; empty if several share it, as A1111 does not choose either."""
    found = [file for file in files if file.metadata and file.metadata.alias == alias]
    return found if len(found) == 1 and alias.lower() not in _IGNORED else []
