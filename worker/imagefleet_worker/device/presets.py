"""Options of how the engine uses its device, by preset and by individual settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from imagefleet_shared.errors import WorkerFailure
from imagefleet_worker.device.attention import AttentionBackend
from imagefleet_worker.settings import WorkerSettings

Preset = Literal["fast", "balanced", "low_vram"]
Offload = Literal["none", "model", "sequential"]

# Total GPU memory. In 16 bits SDXL's weights take 7 GB and a batch of four 1024x1024 images as much
# again, plus saved originals (4.4 GB if LoRAs touch every attention and feed-forward layer): 20 GB.
# Cards sold with 24 GB report 24 to 25.
_FAST_BYTES = 20e9
# SDXL's weights, and one image with VAE tiling. Cards sold with 10 GB report a little more.
_BALANCED_BYTES = 10e9
_PIPELINE_CACHE_BYTES = 16 * 10**9


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that are applied to every pipeline that the engine loads."""

    channels_last: bool
    """UNet and VAE use the channels-last memory format."""
    attention: AttentionBackend
    compile: bool
    """Blocks of the UNet and of the VAE's decoder are compiled with Inductor."""
    cuda_graphs: bool
    """The UNet's kernels are captured once per shape and replayed as a CUDA graph."""
    vae_tiling: bool
    """Large images are decoded in overlapping tiles of the model's native size."""
    offload: Offload
    """Weights are in host memory, and one model or layer at a time is on the device."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The capabilities of the machine that options depend on."""

    accelerator_bytes: int | None
    """Total memory of the GPU; None if passes run on the CPU."""
    why_no_compiler: Callable[[], str | None]
    """Returns why Inductor cannot compile here, or None if it can; called only if needed."""


@dataclass(frozen=True, kw_only=True)
class PresetChoice:
    """A preset and the reason for choosing it."""

    preset: Preset
    reason: str


def choose_preset(requested: Literal["auto"] | Preset, machine: Machine) -> PresetChoice:
    """The requested preset, or with "auto" the one that suits the machine."""
    if requested != "auto":
        return PresetChoice(preset=requested, reason="as set")
    if machine.accelerator_bytes is None:
        # On a CPU compiled steps are no faster, and compiling takes minutes.
        return PresetChoice(preset="balanced", reason="on the CPU")
    gigabytes = f"the device has {machine.accelerator_bytes / 1e9:.1f} GB"
    if machine.accelerator_bytes >= _FAST_BYTES:
        return PresetChoice(preset="fast", reason=f"{gigabytes}, at least {_FAST_BYTES / 1e9:.0f}")
    if machine.accelerator_bytes >= _BALANCED_BYTES:
        return PresetChoice(
            preset="balanced", reason=f"{gigabytes}, at least {_BALANCED_BYTES / 1e9:.0f}"
        )
    return PresetChoice(
        preset="low_vram", reason=f"{gigabytes}, less than {_BALANCED_BYTES / 1e9:.0f}"
    )


def choose_options(
    settings: WorkerSettings, preset: Preset, machine: Machine, attention: AttentionBackend
) -> Options:
    """The options that are set, and for the others the preset's.

    Args:
        settings: of the worker.
        preset: from `choose_preset`.
        machine: that the engine runs on.
        attention: a backend that works here, from `choose_attention`.

    Raises:
        WorkerFailure: an option that is set is not possible on this machine, or excludes another.
    """
    gpu = machine.accelerator_bytes is not None
    offload = settings.offload or ("model" if preset == "low_vram" and gpu else "none")
    fast = preset == "fast"
    options = Options(
        # Tensor cores profit. On a CPU only decoding does, the smaller part of a job.
        channels_last=_or_default(settings.channels_last, gpu),
        attention=attention,
        compile=_or_default(
            settings.compile,
            fast and offload != "sequential" and machine.why_no_compiler() is None,
        ),
        cuda_graphs=_or_default(settings.cuda_graphs, fast and gpu and offload == "none"),
        vae_tiling=_or_default(settings.vae_tiling, preset == "low_vram" or (gpu and not fast)),
        offload=offload,
    )
    _require_possible(options, machine)
    return options


def pipeline_cache_bytes(settings: WorkerSettings, device_bytes: int | None) -> int:
    """Memory limit of the pipeline cache.

    Args:
        settings: of the worker.
        device_bytes: total memory of the GPU that caches them; None for host memory.
    """
    if settings.pipeline_cache_gb is not None:
        return int(settings.pipeline_cache_gb * 1e9)
    if device_bytes is None:
        return _PIPELINE_CACHE_BYTES
    # The remaining third is for activations, as on a card with 24 GB.
    return min(_PIPELINE_CACHE_BYTES, device_bytes * 2 // 3)


def requested_attention(
    settings: WorkerSettings, preset: Preset, machine: Machine
) -> Literal["auto"] | AttentionBackend:
    """The backend to try: as set, else "sliced" if nothing else saves memory here."""
    if settings.attention != "auto":
        return settings.attention
    on_cpu = machine.accelerator_bytes is None
    return "sliced" if preset == "low_vram" and on_cpu else "auto"


def _or_default(setting: bool | None, default: bool) -> bool:
    return default if setting is None else setting


def _require_possible(options: Options, machine: Machine) -> None:
    if options.compile and (reason := machine.why_no_compiler()):
        raise WorkerFailure(f"IMAGEFLEET_COMPILE=true, but {reason}; unset it or install g++")
    graphs, offload = "IMAGEFLEET_CUDA_GRAPHS=true", f"IMAGEFLEET_OFFLOAD={options.offload}"
    if machine.accelerator_bytes is None:
        for name, enabled in ((graphs, options.cuda_graphs), (offload, options.offload != "none")):
            if enabled:
                raise WorkerFailure(f"{name} needs a GPU; the device is cpu")
    if options.cuda_graphs and options.offload != "none":
        raise WorkerFailure(
            f"{graphs} and {offload} exclude each other: a graph needs its weights to stay where "
            "they are"
        )
    if options.compile and options.offload == "sequential":
        raise WorkerFailure(
            f"IMAGEFLEET_COMPILE=true and {offload} exclude each other: in a compiled block no "
            "layer has a turn of its own"
        )
