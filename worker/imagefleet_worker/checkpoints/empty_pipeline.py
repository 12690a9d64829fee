"""Builds a pipeline that matches a checkpoint's tensor shapes but has no weights yet."""

from collections.abc import Callable
from typing import Any

from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.checkpoints.architecture import (
    CONFIGS,
    Config,
    clip_config,
    open_clip_config,
    packaged_config,
    unet_config,
    vae_config,
)
from imagefleet_worker.checkpoints.prediction import prediction_config
from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.safetensors_header import Header

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline
"""SD 1.x, SDXL base or SDXL refiner; the refiner has no `text_encoder` and no `tokenizer`."""


def empty_pipeline(header: Header, family: Family, native_size_px: int) -> Pipeline:
    """Build the family's pipeline from the header's shapes, with parameters on the meta device.

    Raises:
        CorruptFile: the tensors' names or shapes do not form a model of the family.
    """
    try:
        with init_empty_weights():
            return _BUILDERS[family](header, native_size_px)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as exc:
        raise CorruptFile(f"{header.file_name} is not a whole {family} model: {exc}") from exc


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """CLIP's tokenizer from the packaged vocabulary; 77 tokens at most, start and end included."""
    folder = CONFIGS / "tokenizer"
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        pad_token=pad_token,
        model_max_length=77,
    )


def _scheduler_config(header: Header, family: Family) -> Config:
    return {**packaged_config(family, "scheduler"), **prediction_config(header)}


def _sd1(header: Header, native_size_px: int) -> StableDiffusionPipeline:
    # Any, because the pipelines' annotations want an enum for the scheduler and omit None.
    # from_config preserves settings that only other schedulers use (clip_sample), so that the
    # scheduler can be replaced later.
    scheduler: Any = PNDMScheduler.from_config(_scheduler_config(header, "sd1"))
    none: Any = None
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**unet_config(header, "sd1", native_size_px)),
        vae=AutoencoderKL(**vae_config(header, "sd1", native_size_px)),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_config(header, "sd1"))),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        scheduler=scheduler,
        safety_checker=none,
        feature_extractor=none,
        requires_safety_checker=False,
    )


def _sdxl(header: Header, native_size_px: int) -> StableDiffusionXLPipeline:
    scheduler: Any = EulerDiscreteScheduler.from_config(_scheduler_config(header, "sdxl"))
    config_2 = CLIPTextConfig(**open_clip_config(header, "sdxl"))
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**unet_config(header, "sdxl", native_size_px)),
        vae=AutoencoderKL(**vae_config(header, "sdxl", native_size_px)),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_config(header, "sdxl"))),
        text_encoder_2=CLIPTextModelWithProjection(config_2),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        # OpenCLIP pads with token 0, which is "!".
        tokenizer_2=clip_tokenizer("!"),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sdxl_refiner(header: Header, native_size_px: int) -> StableDiffusionXLImg2ImgPipeline:
    scheduler: Any = EulerDiscreteScheduler.from_config(_scheduler_config(header, "sdxl_refiner"))
    none: Any = None
    return StableDiffusionXLImg2ImgPipeline(
        unet=UNet2DConditionModel(**unet_config(header, "sdxl_refiner", native_size_px)),
        vae=AutoencoderKL(**vae_config(header, "sdxl_refiner", native_size_px)),
        text_encoder=none,
        text_encoder_2=CLIPTextModelWithProjection(
            CLIPTextConfig(**open_clip_config(header, "sdxl_refiner"))
        ),
        tokenizer=none,
        tokenizer_2=clip_tokenizer("!"),
        scheduler=scheduler,
        # As released: trained with aesthetic scores, and with empty prompts encoded.
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


_BUILDERS: dict[Family, Callable[[Header, int], Pipeline]] = {
    "sd1": _sd1,
    "sdxl": _sdxl,
    "sdxl_refiner": _sdxl_refiner,
}
