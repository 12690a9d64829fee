"""Every kind of delta is computed as LyCORIS does, from what LyCORIS saves."""

import os
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from imagefleet_worker.adapters.kinds.build import weight_delta
from imagefleet_worker.adapters.tensor_roles import split_key

if os.environ.get("CI"):
    import lycoris.modules as lycoris
else:
    lycoris = pytest.importorskip("lycoris.modules")

TOLERANCE = 1e-6

# LyCORIS has no types: creates one of its modules for a layer.
MakeModule = Callable[[nn.Module], Any]


def linear() -> nn.Module:
    return nn.Linear(40, 24)


def convolution() -> nn.Module:
    return nn.Conv2d(40, 24, 3, padding=1)


def pointwise() -> nn.Module:
    return nn.Conv2d(40, 24, 1)


def make(name: str, **options: object) -> MakeModule:
    return lambda layer: getattr(lycoris, name)(
        "x", layer, 1.0, **{"lora_dim": 4, "alpha": 2, **options}
    )


PER_INPUT = {"weight_decompose": True, "wd_on_out": False}
CASES: list[tuple[str, Callable[[], nn.Module], MakeModule]] = [
    ("lora", linear, make("LoConModule")),
    ("rslora", linear, make("LoConModule", rs_lora=True)),
    ("locon", convolution, make("LoConModule")),
    ("locon pointwise", pointwise, make("LoConModule")),
    ("locon tucker", convolution, make("LoConModule", use_tucker=True)),
    ("loha", linear, make("LohaModule")),
    ("loha convolution", convolution, make("LohaModule")),
    ("loha tucker", convolution, make("LohaModule", use_tucker=True)),
    ("dora out", linear, make("LoConModule", weight_decompose=True)),
    ("doha", convolution, make("LohaModule", weight_decompose=True)),
    ("lokr", linear, make("LokrModule", factor=2)),
    ("lokr both", linear, make("LokrModule", factor=12, decompose_both=True)),
    ("lokr full", linear, make("LokrModule", full_matrix=True)),
    ("lokr convolution", convolution, make("LokrModule", factor=2)),
    ("lokr tucker", convolution, make("LokrModule", factor=2, use_tucker=True)),
    ("dokr", convolution, make("LokrModule", factor=2, weight_decompose=True)),
    ("glora", linear, make("GLoRAModule")),
    ("glora convolution", convolution, make("GLoRAModule")),
    ("ia3 out", linear, make("IA3Module")),
    ("ia3 in", linear, make("IA3Module", train_on_input=True)),
    ("ia3 convolution", convolution, make("IA3Module")),
    ("ia3 convolution in", convolution, make("IA3Module", train_on_input=True)),
    ("oft", linear, make("DiagOFTModule")),
    ("oft constrained", convolution, make("DiagOFTModule", constraint=1e-3)),
    ("oft rescaled", convolution, make("DiagOFTModule", rescaled=True)),
    ("boft", linear, make("ButterflyOFTModule", lora_dim=6)),
    (
        "boft constrained",
        convolution,
        make("ButterflyOFTModule", lora_dim=6, constraint=1e-3, rescaled=True),
    ),
    ("full", convolution, make("FullModule")),
    # LyCORIS' only option in old versions; LoHa and LoKr flatten a kernel into the inputs.
    *(
        (f"{name} {layer.__name__} in", layer, make(module, **PER_INPUT, **options))
        for layer in (linear, convolution, pointwise)
        for name, module, options in (
            ("dora", "LoConModule", {}),
            ("dora tucker", "LoConModule", {"use_tucker": True}),
            ("doha", "LohaModule", {}),
            ("doha tucker", "LohaModule", {"use_tucker": True}),
            ("dokr", "LokrModule", {"factor": 2}),
            ("dokr tucker", "LokrModule", {"factor": 2, "use_tucker": True}),
        )
    ),
]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that LyCORIS would save for the layer by role, without its bias."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        split = split_key(f"lora_unet_layer.{key}")
        assert split is not None, key
        if split[1] != "diff_b":
            tensors[split[1]] = tensor.detach().clone()
    return tensors


def merged_by(adapted: nn.Module, original: Tensor) -> Tensor:
    module = cast(Any, adapted)
    if not isinstance(module, lycoris.LohaModule | lycoris.LokrModule):
        return module.get_merged_weight(1.0)[0].detach()
    # LyCORIS' merge of these applies alpha / rank twice, but its training applies it once.
    merged = original + module.get_weight(original.shape)
    return module.apply_weight_decompose(merged) if module.wd else merged


@pytest.mark.parametrize(
    ("layer", "make_module"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_merged_weight_equals_lycoris(
    layer: Callable[[], nn.Module], make_module: MakeModule
) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        adapted = layer()
        module = make_module(adapted)
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        original = adapted.get_parameter("weight").detach()
        if isinstance(module, lycoris.FullModule):
            module.apply_to()  # Only then are its weights deltas.
        reference = merged_by(module, original)
        delta = weight_delta(tensors_of(module), tuple(original.shape), None).of(original)
    assert not torch.equal(reference, original)
    error = (original.double() + delta.double() - reference.double()).norm()
    assert float(error / reference.double().norm()) <= TOLERANCE
