"""A pipeline of a checkpoint's sizes that has no weights yet."""

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
"""Of SD 1.x, SDXL base and SDXL refiner; the last has no `text_encoder` and no `tokenizer`."""


def empty_pipeline(header: Header, family: Family, native_size_px: int) -> Pipeline:
    """The family's pipeline in the sizes that the header tells, its parameters on the meta device.

    Raises:
        CorruptFile: the tensors' names or shapes do not make a model of the family.
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
    # Any, because the pipelines' annotations name an enum for the scheduler and forget None.
    # from_config keeps settings that only other schedulers have (clip_sample), for when one
    # replaces it.
    scheduler: Any = PNDMScheduler.from_config(_scheduler_config(header, "sd1"))
    nothing: Any = None
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**unet_config(header, "sd1", native_size_px)),
        vae=AutoencoderKL(**vae_config(header, "sd1", native_size_px)),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_config(header, "sd1"))),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        scheduler=scheduler,
        safety_checker=nothing,
        feature_extractor=nothing,
        requires_safety_checker=False,
    )


def _sdxl(header: Header, native_size_px: int) -> StableDiffusionXLPipeline:
    scheduler: Any = EulerDiscreteScheduler.from_config(_scheduler_config(header, "sdxl"))
    second = CLIPTextConfig(**open_clip_config(header, "sdxl"))
    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(**unet_config(header, "sdxl", native_size_px)),
        vae=AutoencoderKL(**vae_config(header, "sdxl", native_size_px)),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip_config(header, "sdxl"))),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        # OpenCLIP pads with token 0, which is "!".
        tokenizer_2=clip_tokenizer("!"),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sdxl_refiner(header: Header, native_size_px: int) -> StableDiffusionXLImg2ImgPipeline:
    scheduler: Any = EulerDiscreteScheduler.from_config(_scheduler_config(header, "sdxl_refiner"))
    nothing: Any = None
    return StableDiffusionXLImg2ImgPipeline(
        unet=UNet2DConditionModel(**unet_config(header, "sdxl_refiner", native_size_px)),
        vae=AutoencoderKL(**vae_config(header, "sdxl_refiner", native_size_px)),
        text_encoder=nothing,
        text_encoder_2=CLIPTextModelWithProjection(
            CLIPTextConfig(**open_clip_config(header, "sdxl_refiner"))
        ),
        tokenizer=nothing,
        tokenizer_2=clip_tokenizer("!"),
        scheduler=scheduler,
        # As released: it was trained with scores, and with the encoding of an empty text.
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


_BUILDERS: dict[Family, Callable[[Header, int], Pipeline]] = {
    "sd1": _sd1,
    "sdxl": _sdxl,
    "sdxl_refiner": _sdxl_refiner,
}
