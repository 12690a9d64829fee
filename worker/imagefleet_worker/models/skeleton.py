"""A pipeline of a checkpoint's sizes that has no weights yet."""

from typing import Any

from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.models.architecture import (
    CONFIGS,
    clip_config,
    open_clip_config,
    packaged_config,
    unet_config,
    vae_config,
)
from imagefleet_worker.models.families import Family
from imagefleet_worker.models.header import Header

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline


def empty_pipeline(header: Header, family: Family, native_size_px: int) -> Pipeline:
    """The family's pipeline in the sizes that the header tells, its parameters on the meta device.

    Raises:
        CorruptFile: the tensors' names or shapes do not make a model of the family.
    """
    build = _sd1 if family == "sd1" else _sdxl
    try:
        with init_empty_weights():
            return build(header, native_size_px)
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


def _sd1(header: Header, native_size_px: int) -> StableDiffusionPipeline:
    # Any, because the pipelines' annotations name an enum for the scheduler and forget None.
    # from_config keeps settings that only other schedulers have (clip_sample), for when one
    # replaces it.
    scheduler: Any = PNDMScheduler.from_config(packaged_config("sd1", "scheduler"))
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
    scheduler: Any = EulerDiscreteScheduler.from_config(packaged_config("sdxl", "scheduler"))
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
