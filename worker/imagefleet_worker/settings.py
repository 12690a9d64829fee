"""Settings of a worker, read once from the environment at process start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from imagefleet_shared.field_types import JobKind, SizePx

_Count = Annotated[int, Field(ge=1, le=16)]


class WorkerSettings(BaseSettings):
    """What one worker process serves, and with what."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGEFLEET_",
        env_ignore_empty=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    models_dir: Path = Path("models")
    """Folder with `checkpoints/` and `upscalers/`; a WebUI's `models` folder works as it is."""
    models_url: str | None = None
    """`s3://bucket/prefix` with more models, in the same folders; service as for pictures."""
    model_cache_dir: Path = Path("/tmp/imagefleet-models")
    """Where models of the bucket are kept on disk; the same folder for all workers of a host."""
    model_disk_gb: float = Field(default=100, gt=0)
    """They are kept up to this size, least recently used out first, GB."""
    default_checkpoint: str | None = None
    """Checkpoint for requests that name none; None: the only one there is, else they must."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: every GPU, or the CPU where there is none."""
    gpus: int | None = Field(default=None, ge=1)
    """How many GPUs one `imagefleet-worker` takes; None: all that no other on this host has."""
    lock_dir: Path = Path("/tmp/imagefleet-locks")
    """Where workers of one host mark the GPUs they have; the same folder for all of them."""
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Precision of the weights; `auto`: fp16 on a GPU, fp32 on the CPU."""
    preset: Literal["auto", "fast", "balanced", "low_vram"] = "auto"
    """What the options from `ATTENTION` to `OFFLOAD` are unless set; `auto`: chosen by the card."""
    attention: Literal["auto", "sdpa", "xformers", "sliced"] = "auto"
    """Attention backend; `auto` takes the first that works on the device, tried at start."""
    channels_last: bool | None = None
    """Memory layout in which convolutions on tensor cores run best; None: the preset's choice."""
    compile: bool | None = None
    """Compile blocks of UNet and VAE, which takes a C++ compiler; None: the preset's choice."""
    cuda_graphs: bool | None = None
    """On a GPU: record the UNet's launches for each size and batch; None: the preset's choice."""
    vae_tiling: bool | None = None
    """Decode large pictures in tiles, which takes less memory; None: the preset's choice."""
    offload: Literal["none", "model", "sequential"] | None = None
    """Keep weights in host memory, and one model (`model`) or layer (`sequential`) at a time on the
    GPU; None: the preset's choice."""
    compile_cache_dir: Path = Path("/tmp/imagefleet-compiled")
    """Compiled code is kept here, so that a worker that starts again compiles nothing."""
    warm_up_checkpoints: Annotated[tuple[str, ...], NoDecode] = ()
    """Checkpoints to compile for before jobs are taken, by commas; none: the default one."""
    warm_up_sizes: Annotated[tuple[tuple[SizePx, SizePx, _Count], ...], NoDecode] = ()
    """Pictures to compile for, `WIDTHxHEIGHTxBATCH` by commas; none: one of the native size."""
    pipeline_cache_gb: float | None = Field(default=None, gt=0)
    """Warm checkpoints are kept up to this size, least recently used out first, GB; None: 16, or
    two thirds of the GPU where that is less."""
    host_cache_gb: float = Field(default=16, ge=0)
    """Beside a GPU: checkpoints that must leave it rest in host memory up to this size, GB."""
    upscaler_cache_gb: float = Field(default=2, gt=0)
    """Warm upscalers are kept up to this size, GB."""
    upscaler_compile: bool = False
    """Compile SwinIR's blocks at its first picture; takes a minute, and is meant for GPUs."""
    face_cache_gb: float = Field(default=2, gt=0)
    """Warm face restorers, detectors and parsers are kept up to this size, GB."""
    adapter_cache_gb: float = Field(default=2, gt=0)
    """Parsed LoRAs are kept in host memory, page-locked beside a GPU, up to this size, GB."""
    device_adapter_gb: float = Field(default=2, ge=0)
    """Parsed LoRAs are kept on the GPU too, up to this size, GB."""
    text_cache_gb: float = Field(default=0.25, ge=0)
    """Encoded prompts are kept on the device up to this size, GB."""
    originals_gb: float = Field(default=8, ge=0)
    """Saved copies of weights that LoRAs touched stay on the GPU up to this size, then in host
    memory, GB."""
    merged_cache_gb: float = Field(default=2, ge=0)
    """On the CPU: weights with the LoRA sets of earlier jobs are kept up to this size, GB."""
    verify_every: int = Field(default=50, ge=1)
    """Of the changes of LoRAs, each so many-th is checked bit for bit against the saved weights."""
    queues: Annotated[tuple[JobKind, ...], NoDecode] = ("generate", "upscale")
    """Kinds of job to take, separated by commas."""
    slots: int = Field(default=8, ge=1, le=64)
    """Jobs held at once: one on the device, the others fetching, encoding, uploading or next."""
    max_pixels: int = Field(default=2048 * 2048, ge=64 * 64)
    """Largest picture that diffusion draws, hires included, pixels."""
    max_output_pixels: int = Field(default=8192 * 8192, ge=64 * 64)
    """Largest picture that is read or that an upscale gives, pixels; on the way it may have 4 times
    as many, and so may all pictures of a request together."""
    max_batch_pixels: int = Field(default=2048 * 2048, ge=0)
    """Waiting jobs of equal settings are drawn together, up to so many pixels; 0: each alone."""
    gather_ms: float = Field(default=10, ge=0, le=1000)
    """How long a batch that has room waits for jobs on their way to the device, milliseconds."""
    max_prompt_tokens: int = Field(default=750, ge=75)
    """Longest prompt, tokens of CLIP."""
    png_level: int = Field(default=1, ge=0, le=9)
    """Compression of PNG files: 1 is a fast way of our own, the others are zlib's levels."""
    lease_s: float = Field(default=30, ge=1)
    """A worker that says nothing for so long has lost its jobs to the others, seconds."""
    stall_timeout_s: float = Field(default=300, gt=0)
    """An engine at work that takes no step for so long is killed and started anew, seconds."""
    drain_timeout_s: float = Field(default=60, ge=0)
    """After SIGTERM, running jobs may take so long before they are handed back, seconds."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on which Prometheus reads this worker, the next GPU's one higher; None: off."""
    spool_dir: Path = Path("/tmp/imagefleet-spool")
    """Finished pictures wait here while the object store is away."""

    @field_validator("queues", "warm_up_checkpoints", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("warm_up_sizes", mode="before")
    @classmethod
    def _split_sizes(cls, value: object) -> object:
        return (
            tuple(size.split("x") for size in value.split(",")) if isinstance(value, str) else value
        )
