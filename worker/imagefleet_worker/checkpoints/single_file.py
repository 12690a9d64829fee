"""Loads a single-file .safetensors checkpoint (LDM names) as a diffusers pipeline, offline.

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
from imagefleet_worker.weights.ldm_keys import COMPONENTS, LdmComponent, LdmName, stored_shape
from imagefleet_worker.weights.ldm_variants import file_ldm_names
from imagefleet_worker.weights.safetensors_header import Header, read_header

# Tensors that inference does not use: training state, the noise schedule (ours is in configs/),
# constants, the contrastive parts of CLIP, and the markers that prediction.py reads.
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
        native_size_px: the image side that the model was trained at.
    """

    pipeline: Pipeline
    family: Family
    native_size_px: int


def load_single_file(path: Path, device: torch.device, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load a copy of the weights onto the device; the file may be replaced afterwards.

    Every weight is cast to ``dtype``, the VAE's too; ``vae.py`` handles a VAE that overflows.

    Raises:
        CorruptFile: damaged, of an unsupported family, or not exactly the tensors its family needs.
        FileUnavailable: the file cannot be read.
    """
    header = read_header(path)
    family = family_of(header)
    size_px = native_size_px(header, family)
    pipeline = empty_pipeline(header, family, size_px)
    modules: dict[LdmComponent, torch.nn.Module] = {
        component: getattr(pipeline, component) for component in COMPONENTS[family]
    }
    names: dict[LdmComponent, dict[str, LdmName]] = {
        component: file_ldm_names(family, component, module.state_dict(), header.tensors)
        for component, module in modules.items()
    }
    _check_keys(header, family, modules, names)
    try:
        with safe_open(path, framework="pt") as weights:
            for component, module in modules.items():
                tensors = {
                    key: _read(weights, names[component][key], parameter.shape, device, dtype)
                    for key, parameter in module.state_dict().items()
                }
                module.load_state_dict(tensors, assign=True, strict=True)
    except SafetensorError as exc:
        raise CorruptFile(f"{path.name} is damaged: {exc}") from exc
    for module in modules.values():
        # Moves only the buffers outside the state dict (CLIP's position ids).
        module.to(device).eval().requires_grad_(False)
    return LoadedCheckpoint(pipeline=pipeline, family=family, native_size_px=size_px)


def _check_keys(
    header: Header,
    family: Family,
    modules: Mapping[LdmComponent, torch.nn.Module],
    names: Mapping[LdmComponent, Mapping[str, LdmName]],
) -> None:
    """Check, before any tensor is read, that none is missing, misshapen or unexpected."""
    missing: list[str] = []
    mismatched: list[str] = []
    used: set[str] = set()
    for component, module in modules.items():
        for key, parameter in module.state_dict().items():
            name = names[component][key]
            used.add(name.key)
            entry = header.tensors.get(name.key)
            expected = stored_shape(name, tuple(parameter.shape))
            if entry is None:
                missing.append(name.key)
            elif not _fits(entry.shape, expected) or entry.dtype not in _FLOATING:
                mismatched.append(
                    f"{name.key} {entry.dtype}{list(entry.shape)} instead of {list(expected)}"
                )
    extra = [key for key in header.tensors if key not in used and not _NOT_NEEDED.fullmatch(key)]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:_KEYS_SHOWN])})"
        for what, keys in (
            ("missing", missing),
            ("of the wrong shape or type", mismatched),
            ("unexpected", extra),
        )
        if keys
    ]
    if problems:
        raise CorruptFile(
            f"{header.file_name} is not a whole {family} model; tensors {'; '.join(problems)}"
        )


def _fits(stored: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the shapes match; a 1x1 convolution may stand for a matrix (VAE attention)."""
    return stored == expected or stored == (*expected, 1, 1)


def _read(
    weights: safe_open,
    name: LdmName,
    shape: torch.Size,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Copy a weight out of the mapped file, so that overwriting the file cannot corrupt it."""
    tensor = weights.get_tensor(name.key)
    if name.qkv_index is not None:
        tensor = tensor.chunk(3)[name.qkv_index]
    if name.transposed:
        tensor = tensor.T
    return tensor.reshape(shape).to(device, dtype, copy=True).contiguous()
