"""Which adapters a job wants, as a value: for the pipeline and for each of its parameters."""

from collections.abc import Collection
from dataclasses import dataclass

from imagefleet_worker.adapters.delta import Adapter, Target

State = tuple[tuple[str, float, float], ...]
"""A pipeline's: (sha256, UNet scale, text encoder scale) of each adapter, sorted."""
Terms = tuple[tuple[str, float], ...]
"""A parameter's: (sha256, scale) of each adapter that changes it, sorted; no scale is 0."""


@dataclass(frozen=True, kw_only=True)
class ScaledAdapter:
    """An adapter and how much of it is wanted; may be negative, and 0 leaves weights alone."""

    adapter: Adapter
    unet_scale: float
    text_encoder_scale: float
    """For every text encoder."""


def state_of(wanted: Collection[ScaledAdapter]) -> State:
    """The same for the same set in any order."""
    return tuple(
        sorted((item.adapter.sha256, item.unet_scale, item.text_encoder_scale) for item in wanted)
    )


def terms_of(wanted: Collection[ScaledAdapter]) -> dict[Target, Terms]:
    """The terms of every parameter that changes."""
    terms: dict[Target, list[tuple[str, float]]] = {}
    for item in wanted:
        for target in item.adapter.deltas:
            unet = target.component == "unet"
            scale = item.unet_scale if unet else item.text_encoder_scale
            if scale:
                terms.setdefault(target, []).append((item.adapter.sha256, scale))
    return {target: tuple(sorted(unsorted)) for target, unsorted in terms.items()}
