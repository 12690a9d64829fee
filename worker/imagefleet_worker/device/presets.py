"""How the engine uses its device: by a preset that suits it, or option by option as set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from imagefleet_shared.errors import WorkerFailure
from imagefleet_worker.device.attention import AttentionBackend
from imagefleet_worker.settings import WorkerSettings

Preset = Literal["fast", "balanced", "low_vram"]
Offload = Literal["none", "model", "sequential"]

# Bytes of the whole card. In 16 bits SDXL's weights take 7 GB and a batch of four 1024x1024
# pictures as much again, beside saved originals (4.4 GB where LoRAs touch every attention and
# feed-forward layer): 20 GB, and cards sold with 24 GB report 24 to 25.
_FAST_BYTES = 20e9
# SDXL's weights, and one picture with its VAE in tiles: cards sold with 10 GB report a little more.
_BALANCED_BYTES = 10e9
_PIPELINE_CACHE_BYTES = 16 * 10**9


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the engine does with every pipeline that it loads."""

    channels_last: bool
    """Convolutions of UNet and VAE have their channels innermost in memory."""
    attention: AttentionBackend
    compile: bool
    """Blocks of the UNet and of the VAE's decoder are compiled by Inductor."""
    cuda_graphs: bool
    """The UNet's kernels are recorded once for each shape, and then launched as one."""
    vae_tiling: bool
    """A large picture is decoded in overlapping tiles of the model's native size."""
    offload: Offload
    """Weights rest in host memory, and one model or layer at a time is on the device."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a choice of options depends on."""

    accelerator_bytes: int | None
    """Memory of the whole card; None: passes run on the CPU."""
    why_no_compiler: Callable[[], str | None]
    """Why Inductor cannot compile here; None: it can. Asked only where it matters."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A preset, and why it was chosen."""

    preset: Preset
    reason: str


def choose_preset(requested: Literal["auto"] | Preset, machine: Machine) -> Choice:
    """The preset asked for, or the one that suits the machine."""
    if requested != "auto":
        return Choice(preset=requested, reason="as set")
    if machine.accelerator_bytes is None:
        # Compiled steps are no faster there, and minutes go by before the first.
        return Choice(preset="balanced", reason="on the CPU")
    gigabytes = f"the device has {machine.accelerator_bytes / 1e9:.1f} GB"
    if machine.accelerator_bytes >= _FAST_BYTES:
        return Choice(preset="fast", reason=f"{gigabytes}, at least {_FAST_BYTES / 1e9:.0f}")
    if machine.accelerator_bytes >= _BALANCED_BYTES:
        return Choice(
            preset="balanced", reason=f"{gigabytes}, at least {_BALANCED_BYTES / 1e9:.0f}"
        )
    return Choice(preset="low_vram", reason=f"{gigabytes}, less than {_BALANCED_BYTES / 1e9:.0f}")


def choose_options(
    settings: WorkerSettings, preset: Preset, machine: Machine, attention: AttentionBackend
) -> Options:
    """What is set, and for the rest what the preset says.

    Args:
        settings: of the worker.
        preset: from `choose_preset`.
        machine: that the engine runs on.
        attention: backend that works on it, from `attention_asked`.

    Raises:
        WorkerFailure: an option that is set cannot be had on this machine or beside another one.
    """
    gpu = machine.accelerator_bytes is not None
    offload = settings.offload or ("model" if preset == "low_vram" and gpu else "none")
    fast = preset == "fast"
    options = Options(
        # For tensor cores. On a CPU a step gains nothing by it; decoding, the lesser part, does.
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


def pipeline_cache_bytes(settings: WorkerSettings, on_card_bytes: int | None) -> int:
    """What warm checkpoints may take together.

    Args:
        settings: of the worker.
        on_card_bytes: memory of the whole card that they are kept on; None: in the host's.
    """
    if settings.pipeline_cache_gb is not None:
        return int(settings.pipeline_cache_gb * 1e9)
    if on_card_bytes is None:
        return _PIPELINE_CACHE_BYTES
    # The rest is for what the passes need, as on a card with 24 GB.
    return min(_PIPELINE_CACHE_BYTES, on_card_bytes * 2 // 3)


def requested_attention(
    settings: WorkerSettings, preset: Preset, machine: Machine
) -> Literal["auto"] | AttentionBackend:
    """The backend to try: as set, else slices where there is no other way to save memory."""
    if settings.attention != "auto":
        return settings.attention
    on_cpu = machine.accelerator_bytes is None
    return "sliced" if preset == "low_vram" and on_cpu else "auto"


def _or_default(asked: bool | None, chosen: bool) -> bool:
    return chosen if asked is None else asked


def _require_possible(options: Options, machine: Machine) -> None:
    if options.compile and (reason := machine.why_no_compiler()):
        raise WorkerFailure(f"IMAGEFLEET_COMPILE=true, but {reason}; unset it or install g++")
    graphs, offload = "IMAGEFLEET_CUDA_GRAPHS=true", f"IMAGEFLEET_OFFLOAD={options.offload}"
    if machine.accelerator_bytes is None:
        for name, wanted in ((graphs, options.cuda_graphs), (offload, options.offload != "none")):
            if wanted:
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
