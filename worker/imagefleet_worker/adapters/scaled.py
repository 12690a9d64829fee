"""Requested adapters with their scales, as hashable values."""

from collections.abc import Collection
from dataclasses import dataclass

from imagefleet_worker.adapters.delta import Adapter, Target

State = tuple[tuple[str, float, float], ...]
"""Of a pipeline: (sha256, UNet scale, text encoder scale) of each adapter, sorted."""
Terms = tuple[tuple[str, float], ...]
"""Of a parameter: (sha256, scale) of each adapter that changes it, sorted; no scale is 0."""


@dataclass(frozen=True, kw_only=True)
class ScaledAdapter:
    """An adapter and its scales, which may be negative; 0 leaves the weights unchanged."""

    adapter: Adapter
    unet_scale: float
    text_encoder_scale: float
    """For every text encoder."""


def state_of(adapters: Collection[ScaledAdapter]) -> State:
    """The state with these adapters merged; independent of their order."""
    return tuple(
        sorted((item.adapter.sha256, item.unet_scale, item.text_encoder_scale) for item in adapters)
    )


def terms_of(adapters: Collection[ScaledAdapter]) -> dict[Target, Terms]:
    """The terms of every parameter that the adapters change."""
    terms: dict[Target, list[tuple[str, float]]] = {}
    for item in adapters:
        for target in item.adapter.deltas:
            is_unet = target.component == "unet"
            scale = item.unet_scale if is_unet else item.text_encoder_scale
            if scale:
                terms.setdefault(target, []).append((item.adapter.sha256, scale))
    return {target: tuple(sorted(unsorted)) for target, unsorted in terms.items()}
