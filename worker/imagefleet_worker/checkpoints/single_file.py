"""A single-file .safetensors checkpoint in LDM names to a diffusers pipeline, with no network.

The pipeline is a container of components: it has no safety checker, feature extractor or watermark.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.checkpoints.empty_pipeline import Pipeline, empty_pipeline
from imagefleet_worker.weights.families import Family, family_of, native_size_px
from imagefleet_worker.weights.ldm_keys import COMPONENTS, LdmComponent, LdmName, as_stored
from imagefleet_worker.weights.ldm_variants import file_names
from imagefleet_worker.weights.safetensors_header import Header, read_header

# Tensors that checkpoints carry and no pass reads: training state, the noise schedule (ours is in
# configs/), constants, the contrastive parts of CLIP, and the markers that prediction.py heeds.
_NOT_NEEDED = re.compile(
    r"model_ema\..*|(.*\.)?position_ids|(.*\.)?logit_scale|(.*\.)?loss\..*|(.*\.)?text_projection(\.weight)?"
    r"|betas|logvar|lvlb_weights|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?"
    r"|posterior_.*|denoiser\..*|global_step|__.*__|v_pred|ztsnr"
)
_FLOATING = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_KEYS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A checkpoint in memory.

    Attributes:
        pipeline: its components, in eval mode, with no gradients.
        family: the architecture.
        native_size_px: the picture side that the model was trained at.
    """

    pipeline: Pipeline
    family: Family
    native_size_px: int


def load_single_file(path: Path, device: torch.device, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load the file into memory of its own on the device; the file may be replaced afterwards.

    Every weight is cast to ``dtype``, the VAE's too; ``vae.py`` sees to one that overflows.

    Raises:
        CorruptFile: damaged, of an unsupported family, or not exactly the tensors its family needs.
        FileUnavailable: the file cannot be read.
    """
    header = read_header(path)
    family = family_of(header)
    size_px = native_size_px(header, family)
    pipeline = empty_pipeline(header, family, size_px)
    modules: dict[LdmComponent, torch.nn.Module] = {
        part: getattr(pipeline, part) for part in COMPONENTS[family]
    }
    names: dict[LdmComponent, dict[str, LdmName]] = {
        part: file_names(family, part, module.state_dict(), header.tensors)
        for part, module in modules.items()
    }
    _check_keys(header, family, modules, names)
    try:
        with safe_open(path, framework="pt") as weights:
            for part, module in modules.items():
                tensors = {
                    key: _read(weights, names[part][key], parameter.shape, device, dtype)
                    for key, parameter in module.state_dict().items()
                }
                module.load_state_dict(tensors, assign=True, strict=True)
    except SafetensorError as exc:
        raise CorruptFile(f"{path.name} is damaged: {exc}") from exc
    for module in modules.values():
        # Only the buffers outside the state dict (CLIP's position ids) still move.
        module.to(device).eval().requires_grad_(False)
    return LoadedCheckpoint(pipeline=pipeline, family=family, native_size_px=size_px)


def _check_keys(
    header: Header,
    family: Family,
    modules: Mapping[LdmComponent, torch.nn.Module],
    names: Mapping[LdmComponent, Mapping[str, LdmName]],
) -> None:
    """Account for every tensor before one is read: each weight has one, each has its use."""
    missing: list[str] = []
    misfits: list[str] = []
    used: set[str] = set()
    for part, module in modules.items():
        for key, parameter in module.state_dict().items():
            name = names[part][key]
            used.add(name.key)
            entry = header.tensors.get(name.key)
            wanted = as_stored(name, tuple(parameter.shape))
            if entry is None:
                missing.append(name.key)
            elif not _fits(entry.shape, wanted) or entry.dtype not in _FLOATING:
                misfits.append(
                    f"{name.key} {entry.dtype}{list(entry.shape)} instead of {list(wanted)}"
                )
    extra = [key for key in header.tensors if key not in used and not _NOT_NEEDED.fullmatch(key)]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:_KEYS_SHOWN])})"
        for what, keys in (
            ("missing", missing),
            ("of the wrong shape or type", misfits),
            ("unexpected", extra),
        )
        if keys
    ]
    if faults:
        raise CorruptFile(
            f"{header.file_name} is not a whole {family} model; tensors {'; '.join(faults)}"
        )


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """True also where the file has a 1x1 convolution for a matrix (the VAE's attention)."""
    return stored == wanted or stored == (*wanted, 1, 1)


def _read(
    weights: safe_open,
    name: LdmName,
    shape: torch.Size,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """One weight, copied out of the mapped file, lest overwriting the file change it or kill us."""
    tensor = weights.get_tensor(name.key)
    if name.third is not None:
        tensor = tensor.chunk(3)[name.third]
    if name.transposed:
        tensor = tensor.T
    return tensor.reshape(shape).to(device, dtype, copy=True).contiguous()
