"""Settings of a worker, read once from the environment at process start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from imagefleet_shared.field_types import JobKind, SizePx

_Count = Annotated[int, Field(ge=1, le=16)]


class WorkerSettings(BaseSettings):
    """Settings of one worker process."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGEFLEET_",
        env_ignore_empty=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    models_dir: Path = Path("models")
    """Folder with `checkpoints/` and `upscalers/`; a WebUI's `models` folder works as it is."""
    models_url: str | None = None
    """`s3://bucket/prefix` with more models in the same folders; same S3 service as for images."""
    model_cache_dir: Path = Path("/tmp/imagefleet-models")
    """Disk cache of the bucket's models; the same folder for all workers of a host."""
    model_disk_gb: float = Field(default=100, gt=0)
    """Size of that cache, GB; the least recently used models are evicted first."""
    default_checkpoint: str | None = None
    """Checkpoint of requests that name none; None: the only one there is; if there are several,
    requests must name one."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: every GPU, or the CPU where there is none."""
    gpus: int | None = Field(default=None, ge=1)
    """How many GPUs one `imagefleet-worker` uses; None: all that no other on this host uses."""
    lock_dir: Path = Path("/tmp/imagefleet-locks")
    """Lock files of GPUs in use; the same folder for all workers of a host."""
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Precision of the weights; `auto`: fp16 on a GPU, fp32 on the CPU."""
    preset: Literal["auto", "fast", "balanced", "low_vram"] = "auto"
    """Default of the options from `ATTENTION` to `OFFLOAD`; `auto`: chosen by the GPU."""
    attention: Literal["auto", "sdpa", "xformers", "sliced"] = "auto"
    """Attention backend; `auto`: the first that works on the device, tested at start."""
    channels_last: bool | None = None
    """Memory layout in which convolutions on tensor cores run best; None: the preset's choice."""
    compile: bool | None = None
    """Compile blocks of UNet and VAE, which takes a C++ compiler; None: the preset's choice."""
    cuda_graphs: bool | None = None
    """On a GPU: capture CUDA graphs of the UNet per size and batch; None: the preset's choice."""
    vae_tiling: bool | None = None
    """Decode large images in tiles, which takes less memory; None: the preset's choice."""
    offload: Literal["none", "model", "sequential"] | None = None
    """Hold weights in host memory, and one model (`model`) or layer (`sequential`) at a time on the
    GPU; None: the preset's choice."""
    compile_cache_dir: Path = Path("/tmp/imagefleet-compiled")
    """Cache of compiled code, so that a restarted worker does not compile again."""
    warm_up_checkpoints: Annotated[tuple[str, ...], NoDecode] = ()
    """Checkpoints to compile for before taking jobs, comma-separated; none: the default one."""
    warm_up_sizes: Annotated[tuple[tuple[SizePx, SizePx, _Count], ...], NoDecode] = ()
    """Images to compile for, `WIDTHxHEIGHTxBATCH`, comma-separated; none: one of native size."""
    pipeline_cache_gb: float | None = Field(default=None, gt=0)
    """Cache of checkpoints on the device, GB; the least recently used are evicted first; None: 16,
    or two thirds of the GPU's memory if that is less."""
    host_cache_gb: float = Field(default=16, ge=0)
    """With a GPU: cache in host memory of checkpoints evicted from it, GB."""
    upscaler_cache_gb: float = Field(default=2, gt=0)
    """Cache of upscalers on the device, GB."""
    upscaler_compile: bool = False
    """Compile SwinIR's blocks at its first image; takes a minute, and is meant for GPUs."""
    face_cache_gb: float = Field(default=2, gt=0)
    """Cache of face restorers, detectors and parsers on the device, GB."""
    adapter_cache_gb: float = Field(default=2, gt=0)
    """Cache of parsed LoRAs in host memory, page-locked with a GPU, GB."""
    device_adapter_gb: float = Field(default=2, ge=0)
    """Cache of parsed LoRAs on the GPU, GB."""
    text_cache_gb: float = Field(default=0.25, ge=0)
    """Cache of encoded prompts on the device, GB."""
    originals_gb: float = Field(default=8, ge=0)
    """Original weights that LoRAs changed are saved on the GPU up to this size, then in host
    memory, GB."""
    merged_cache_gb: float = Field(default=2, ge=0)
    """On the CPU: cache of weights merged with the LoRA sets of earlier jobs, GB."""
    verify_every: int = Field(default=50, ge=1)
    """After every Nth LoRA switch, weights are verified bit for bit against the saved originals."""
    queues: Annotated[tuple[JobKind, ...], NoDecode] = ("generate", "upscale")
    """Kinds of job to take, comma-separated."""
    slots: int = Field(default=8, ge=1, le=64)
    """Jobs leased at once: one on the device, the others fetching, waiting, encoding, uploading."""
    max_pixels: int = Field(default=2048 * 2048, ge=64 * 64)
    """Largest image that is generated, hires included, pixels."""
    max_output_pixels: int = Field(default=8192 * 8192, ge=64 * 64)
    """Largest input image, and largest output of an upscale, pixels; intermediate results, and all
    images of a request together, may have 4 times as many."""
    max_batch_pixels: int = Field(default=2048 * 2048, ge=0)
    """Waiting jobs of equal settings are batched up to this many pixels; 0: no batching."""
    gather_ms: float = Field(default=10, ge=0, le=1000)
    """How long a batch that is not full waits for jobs that are being prepared, milliseconds."""
    max_prompt_tokens: int = Field(default=750, ge=75)
    """Longest prompt, CLIP tokens."""
    png_level: int = Field(default=1, ge=0, le=9)
    """PNG compression level: 1 uses a faster encoder than zlib; the others are zlib's levels."""
    lease_s: float = Field(default=30, ge=1)
    """The jobs of a worker silent this long are leased to others, seconds."""
    stall_timeout_s: float = Field(default=300, gt=0)
    """A worker whose busy engine takes no step for this long is killed and restarted, seconds."""
    drain_timeout_s: float = Field(default=60, ge=0)
    """After SIGTERM, running jobs have this long to finish before they are requeued, seconds."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the Prometheus endpoint; each further GPU's is one higher; None: off."""
    spool_dir: Path = Path("/tmp/imagefleet-spool")
    """Finished images are saved here while the object store is unavailable."""

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
