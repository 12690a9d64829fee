"""Names that LoRAs were trained under, by which A1111 finds files that were renamed since."""

from collections.abc import Sequence

from imagefleet_worker.catalog.model_file import ModelFile

# A1111 finds what was trained under these by its file's name only.
_FORBIDDEN = {"none", "addams"}


def find_by_alias(files: Sequence[ModelFile], alias: str) -> list[ModelFile]:
    """The file that has the alias; none where several have it: A1111 does not choose either."""
    found = [file for file in files if file.metadata and file.metadata.alias == alias]
    return found if len(found) == 1 and alias.lower() not in _FORBIDDEN else []
