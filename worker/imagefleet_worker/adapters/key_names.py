"""Names that files have for modules, resolved to the parameters of a real pipeline."""

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

# With dots as underscores, as in `_flat`. kohya's OFT has a prefix of its own; `clip_l` with no
# more is the open model initiative's, which OneTrainer can write. Some SD 1.x files name the
# encoder as SDXL's first (A1111 has a branch for them). A bare text encoder ("") is only told apart
# from others where there is just one.
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
    # Nothing is named: no adapter fits a refiner, so every one is refused with its layers.
    "sdxl_refiner": {"unet": (), "text_encoder_2": ()},
}
# PEFT's, when the adapter was saved from a wrapped model.
_WRAPPED = "base_model_model_"

# diffusers before PEFT: attention's own names, in the UNet behind a processor.
_PROCESSORS = {
    "to_q": "processor_to_q",
    "to_k": "processor_to_k",
    "to_v": "processor_to_v",
    "to_out_0": "processor_to_out",
}
_OLD_CLIP = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


class Naming:
    """Every name of every module that has a weight, in all the namings that files have.

    Names are compared with dots as underscores (kohya writes both as the latter): two modules that
    would then be called the same are a failure when this is built, not a wrong picture later.

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
        """The parameter of the module that a file calls so; None if there is none.

        Args:
            module: a key of the file without its end, as `parts.split_key` gives it.
        """
        found = self._modules.get(_flat(module).replace(_WRAPPED, "", 1))
        if found is None:
            return None
        target = Target(found[0], f"{found[1]}.{parameter}")
        return target if target in self._shapes else None

    def shape(self, target: Target) -> tuple[int, ...]:
        """The shape of a parameter that `target` gave."""
        return self._shapes[target]


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _names(family: Family, component: Component, parameters: list[str]) -> dict[str, set[str]]:
    """The module's names without a prefix, flattened, by its path in the component."""
    names: dict[str, set[str]] = {}
    stored = ldm_names(family, component, parameters)
    open_clip = OPEN_CLIP_PREFIXES.get(family, "")
    for parameter in parameters:
        path = parameter.rpartition(".")[0]
        known = names.setdefault(path, set())
        if component == "unet":
            ldm = stored[parameter].key.removeprefix(UNET_PREFIX).rpartition(".")[0]
            known.update(map(_flat, (path, ldm, *_old_unet_names(_flat(path)))))
        else:
            # transformers 5.6 took this level out of CLIPTextModel; nearly all files have it.
            bare = path.removeprefix("text_model.")
            known.update(map(_flat, (bare, f"text_model.{bare}", *_old_clip_names(bare))))
            ldm = stored[parameter].key.removeprefix(open_clip).rpartition(".")[0]
            # Not OpenCLIP's fused query, key and value, nor its parameters without a module.
            if ldm and stored[parameter].third is None:
                known.add(_flat(ldm))
    return names


def _old_unet_names(path: str) -> Iterator[str]:
    for ours, old in _PROCESSORS.items():
        if path.endswith(f"_{ours}") and "_attn" in path:
            yield path.removesuffix(ours) + old


def _old_clip_names(bare: str) -> Iterator[str]:
    head, _, last = bare.rpartition(".")
    if last in _OLD_CLIP:
        yield f"text_model.{head}.{_OLD_CLIP[last]}"
