"""Switching LoRAs with diffusers and PEFT, for comparison."""

# Pipelines are typed as if none of their components could be None.
# pyright: reportArgumentType=false

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file
from torch import Tensor

from imagefleet_worker.weights.families import Family
from tests.benchmarks.timing import least_cpu_s


def pipeline_of(
    unet: UNet2DConditionModel, family: Family
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    components = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler"))
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            **components, text_encoder_2=None, tokenizer_2=None, unet=unet
        )
    return StableDiffusionPipeline(
        **components,
        safety_checker=None,
        feature_extractor=None,
        unet=unet,
        requires_safety_checker=False,
    )


def time_diffusers(
    unet: UNet2DConditionModel, family: Family, paths: Sequence[Path], scale: float, times: int
) -> dict[str, float]:
    """Seconds of merging and unmerging LoRAs; see `bench_switch`."""
    pipeline = pipeline_of(unet, family)
    names = [path.stem for path in paths]
    fuse_s: list[float] = []

    def fuse() -> None:
        pipeline.fuse_lora(components=["unet"], adapter_names=names)
        pipeline.unfuse_lora(components=["unet"])

    def cycle(sources: Sequence[Mapping[str, Tensor] | Path]) -> None:
        for name, source in zip(names, sources, strict=True):
            # diffusers takes keys out of the mapping.
            lora = str(source) if isinstance(source, Path) else dict(source)
            pipeline.load_lora_weights(lora, adapter_name=name)
        pipeline.set_adapters(names, [scale] * len(names))
        fuse_s.append(least_cpu_s(fuse, 1))
        pipeline.unload_lora_weights()

    def time_cached() -> float:
        in_memory = [load_file(path) for path in paths]
        return least_cpu_s(lambda: cycle(in_memory), times)

    cached_s = time_cached()
    cold_s = least_cpu_s(lambda: cycle(paths), 1)
    return {"diffusers_s": cached_s, "diffusers_cold_s": cold_s, "diffusers_fuse_s": min(fuse_s)}
