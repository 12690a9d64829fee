"""Words that call up what an adapter has learnt, from the metadata that trainers write."""

import json
from collections import Counter
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

_PHRASE = "modelspec.trigger_phrase"
_TAGS = "ss_tag_frequency"
_TAGS_KEPT = 10

_COUNTS = TypeAdapter(dict[str, dict[str, int]])


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The stated phrase, or else the most frequent tags of the training set, ten at most.

    Tags of several folders are counted together. What cannot be read counts as not there: it is
    for show only.
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
    # By name where counts are equal: the file's order would be as good as random.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(tag for tag, _ in ranked[:_TAGS_KEPT])
