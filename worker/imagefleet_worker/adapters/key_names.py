"""Resolves module names of adapter files to parameters of a pipeline."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import OPEN_CLIP_PREFIXES, UNET_PREFIX, ldm_names

_UNET_PREFIXES = (
    "",
    "lora_unet_",
    "oft_unet_",
    "unet_",
    "lycoris_",
    "diffusion_model_",
    "model_diffusion_model_",
)

# With dots as underscores, as in `_flatten`. kohya's OFT has its own prefix; plain `clip_l` is the
# Open Model Initiative's, which OneTrainer can write. Some SD 1.x files name the encoder as SDXL's
# first (A1111 has a branch for them). Keys without a prefix ("") are only unambiguous if there is
# just one text encoder.
_PREFIXES: dict[Family, dict[Component, tuple[str, ...]]] = {
    "sd1": {
        "unet": _UNET_PREFIXES,
        "text_encoder": (
            "",
            "lora_te_",
            "lora_te1_",
            "text_encoder_",
            "lycoris_",
            "text_encoders_clip_l_transformer_",
            "clip_l_transformer_",
            "clip_l_",
            "cond_stage_model_transformer_",
        ),
    },
    "sdxl": {
        "unet": _UNET_PREFIXES,
        "text_encoder": (
            "lora_te1_",
            "text_encoder_",
            "text_encoder_1_",
            "text_encoders_clip_l_transformer_",
            "clip_l_transformer_",
            "clip_l_",
            "conditioner_embedders_0_transformer_",
        ),
        "text_encoder_2": (
            "lora_te2_",
            "text_encoder_2_",
            "text_encoders_clip_g_transformer_",
            "clip_g_transformer_",
            "clip_g_",
            "conditioner_embedders_1_model_",
        ),
    },
    # Empty: no adapter fits a refiner, so all are refused, with their layers listed.
    "sdxl_refiner": {"unet": (), "text_encoder_2": ()},
}
# PEFT's prefix in adapters saved from a wrapped model.
_WRAPPED = "base_model_model_"

# diffusers' names before PEFT: attention layers, in the UNet prefixed by the processor.
_PROCESSORS = {
    "to_q": "processor_to_q",
    "to_k": "processor_to_k",
    "to_v": "processor_to_v",
    "to_out_0": "processor_to_out",
}
_OLD_CLIP = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


class Naming:
    """All names of a pipeline's modules in the naming schemes of adapter files.

    Names are compared with dots as underscores, as kohya writes them. The constructor fails if two
    modules share a name.

    Args:
        family: of the checkpoint.
        components: its UNet and text encoders; only names and shapes are read, so the parameters
            may be on the meta device.
    """

    def __init__(self, family: Family, components: Mapping[Component, torch.nn.Module]) -> None:
        self.family: Family = family
        self._shapes = {
            Target(component, name): tuple(parameter.shape)
            for component, module in components.items()
            for name, parameter in module.named_parameters()
        }
        self._modules: dict[str, tuple[Component, str]] = {}
        for component, module in components.items():
            parameters = [name for name, _ in module.named_parameters()]
            for path, names in _names(family, component, parameters).items():
                for prefix in _PREFIXES[family][component]:
                    for name in names:
                        known = self._modules.setdefault(prefix + name, (component, path))
                        assert known == (component, path), (prefix + name, known, path)

    def target(self, module: str, parameter: Literal["weight", "bias"]) -> Target | None:
        """The parameter of the module with this name in a file; None if there is none.

        Args:
            module: a key of the file without its suffix, as from `tensor_roles.split_key`.
        """
        found = self._modules.get(_flatten(module).replace(_WRAPPED, "", 1))
        if found is None:
            return None
        target = Target(found[0], f"{found[1]}.{parameter}")
        return target if target in self._shapes else None

    def shape(self, target: Target) -> tuple[int, ...]:
        """The shape of a parameter returned by `target`."""
        return self._shapes[target]


def _flatten(name: str) -> str:
    return name.replace(".", "_")


def _names(family: Family, component: Component, parameters: list[str]) -> dict[str, set[str]]:
    """The flattened names of each module without prefix, by its path in the component."""
    names: dict[str, set[str]] = {}
    stored = ldm_names(family, component, parameters)
    open_clip = OPEN_CLIP_PREFIXES.get(family, "")
    for parameter in parameters:
        path = parameter.rpartition(".")[0]
        known = names.setdefault(path, set())
        if component == "unet":
            ldm = stored[parameter].key.removeprefix(UNET_PREFIX).rpartition(".")[0]
            known.update(map(_flatten, (path, ldm, *_old_unet_names(_flatten(path)))))
        else:
            # transformers 5.6 removed this level from CLIPTextModel; nearly all files have it.
            short_path = path.removeprefix("text_model.")
            known.update(
                map(
                    _flatten, (short_path, f"text_model.{short_path}", *_old_clip_names(short_path))
                )
            )
            ldm = stored[parameter].key.removeprefix(open_clip).rpartition(".")[0]
            # Neither OpenCLIP's fused query, key and value, nor parameters without a module.
            if ldm and stored[parameter].qkv_index is None:
                known.add(_flatten(ldm))
    return names


def _old_unet_names(path: str) -> Iterator[str]:
    for name, old_name in _PROCESSORS.items():
        if path.endswith(f"_{name}") and "_attn" in path:
            yield path.removesuffix(name) + old_name


def _old_clip_names(short_path: str) -> Iterator[str]:
    head, _, last = short_path.rpartition(".")
    if last in _OLD_CLIP:
        yield f"text_model.{head}.{_OLD_CLIP[last]}"
