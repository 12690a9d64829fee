"""Reads an adapter's trigger words from metadata written by trainers."""

import json
from collections import Counter
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

_PHRASE = "modelspec.trigger_phrase"
_TAGS = "ss_tag_frequency"
_MAX_WORDS = 10

_COUNTS = TypeAdapter(dict[str, dict[str, int]])


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The trigger phrase, or else the ten most frequent tags of the training set.

    Tags of several folders are counted together. Unreadable metadata is ignored, because trigger
    words are for display only.
    """
    phrase = metadata.get(_PHRASE, "").strip()
    if phrase:
        return (phrase,)
    try:
        folders = _COUNTS.validate_python(json.loads(metadata.get(_TAGS, "{}")))
    except (ValueError, RecursionError, ValidationError):
        return ()
    counts: Counter[str] = Counter()
    for tags in folders.values():
        counts.update({tag.strip(): count for tag, count in tags.items()})
    # Ties are sorted by name, because the file's order is arbitrary.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(tag for tag, _ in ranked[:_MAX_WORDS])
