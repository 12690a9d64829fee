"""Every kind of delta equals its formula, written out in float64."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from imagefleet_worker.adapters.kinds.build import AnyDelta, weight_delta
from imagefleet_worker.adapters.kinds.factors import ShapeMismatch
from imagefleet_worker.adapters.kinds.low_rank import RowwiseLoRADelta
from imagefleet_worker.adapters.kinds.product import Product
from imagefleet_worker.adapters.kinds.tensors import Incomplete, MetadataAlpha

MATRIX = (24, 40)
KERNEL = (24, 40, 3, 3)
TOLERANCE = 1e-6


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def original_of(shape: tuple[int, ...]) -> Tensor:
    return randn(*shape, seed=99) * 0.05


def build(shape: tuple[int, ...], parts: Mapping[str, Tensor]) -> AnyDelta:
    return weight_delta(parts, shape, None)


def error_of(shape: tuple[int, ...], parts: Mapping[str, Tensor], reference: Tensor) -> float:
    """Relative error of the delta; also checks the contract of `Delta.of`."""
    original = original_of(shape)
    before = original.clone()
    delta = build(shape, parts).of(original)
    assert (delta.shape, delta.dtype) == (original.shape, torch.float32)
    assert torch.equal(original, before), "the original is not modified"
    assert reference.dtype == torch.float64
    return float((delta.double() - reference).norm() / reference.norm())


def test_lora_is_up_times_down_times_alpha_over_rank() -> None:
    up, down = randn(24, 4), randn(4, 40)
    parts = {"lora_up": up, "lora_down": down, "alpha": torch.tensor(2.0)}
    reference = up.double().matmul(down.double()) * (2 / 4)
    assert error_of(MATRIX, parts, reference) <= TOLERANCE


def test_lora_without_an_alpha_has_scale_one() -> None:
    up, down = randn(24, 4), randn(4, 40)
    reference = up.double() @ down.double()
    assert error_of(MATRIX, {"lora_up": up, "lora_down": down}, reference) <= TOLERANCE


def test_lora_uses_alpha_from_the_metadata_if_there_is_no_tensor() -> None:
    up, down = randn(24, 4), randn(4, 40)
    parts = {"lora_up": up, "lora_down": down}
    product = (up.double() @ down.double()).float()
    for rank_stabilized, scale in ((False, 2 / 4), (True, 2 / 2)):
        delta = weight_delta(parts, MATRIX, MetadataAlpha(2.0, rank_stabilized)).of(
            original_of(MATRIX)
        )
        torch.testing.assert_close(delta, product * scale)


def test_a_scale_tensor_overrides_alpha_over_rank() -> None:
    up, down = randn(24, 4), randn(4, 40)
    parts = {
        "lora_up": up,
        "lora_down": down,
        "alpha": torch.tensor(8.0),
        "scale": torch.tensor(0.25),
    }
    assert error_of(MATRIX, parts, up.double() @ down.double() * 0.25) <= TOLERANCE


def test_pointwise_convolution_factors_fit_a_matrix_and_vice_versa() -> None:
    up, down = randn(24, 4, 1, 1), randn(4, 40, 1, 1)
    reference = up.double()[:, :, 0, 0] @ down.double()[:, :, 0, 0]
    assert error_of(MATRIX, {"lora_up": up, "lora_down": down}, reference) <= TOLERANCE
    flat = {"lora_up": up[:, :, 0, 0], "lora_down": down[:, :, 0, 0]}
    assert error_of((24, 40, 1, 1), flat, reference[:, :, None, None]) <= TOLERANCE


def test_half_precision_factors_are_multiplied_in_float32() -> None:
    up, down = randn(24, 4, dtype=torch.float16), randn(4, 40, dtype=torch.bfloat16)
    delta = build(MATRIX, {"lora_up": up, "lora_down": down})
    assert delta.size_bytes == 2 * (24 * 4 + 4 * 40)
    reference = up.double() @ down.double()
    assert error_of(MATRIX, {"lora_up": up, "lora_down": down}, reference) <= TOLERANCE


def test_locon_is_a_convolution_and_a_pointwise_convolution() -> None:
    up, down = randn(24, 4, 1, 1), randn(4, 40, 3, 3)
    parts = {"lora_up": up, "lora_down": down, "alpha": torch.tensor(1.0)}
    reference = torch.zeros(KERNEL, dtype=torch.float64)
    for rank in range(4):
        outputs = up.double()[:, rank, 0, 0].view(24, 1, 1, 1)
        reference += outputs * down.double()[rank].unsqueeze(0) / 4
    assert error_of(KERNEL, parts, reference) <= TOLERANCE


def test_locon_with_a_core_is_a_tucker_decomposition() -> None:
    up, mid, down = randn(24, 4, 1, 1), randn(4, 4, 3, 3), randn(4, 40, 1, 1)
    parts = {"lora_up": up, "lora_down": down, "lora_mid": mid, "alpha": torch.tensor(2.0)}
    reference = torch.empty(KERNEL, dtype=torch.float64)
    for y in range(3):
        for x in range(3):
            core = mid.double()[:, :, y, x]
            reference[:, :, y, x] = up.double().flatten(1) @ core @ down.double().flatten(1) / 2
    assert error_of(KERNEL, parts, reference) <= TOLERANCE


def loha_parts(inputs: int) -> dict[str, Tensor]:
    return {
        "hada_w1_a": randn(24, 4, seed=1),
        "hada_w1_b": randn(4, inputs, seed=2),
        "hada_w2_a": randn(24, 4, seed=3),
        "hada_w2_b": randn(4, inputs, seed=4),
        "alpha": torch.tensor(1.0),
    }


@pytest.mark.parametrize("shape", [MATRIX, KERNEL])
def test_loha_is_the_elementwise_product_of_two_products(shape: tuple[int, ...]) -> None:
    parts = loha_parts(torch.Size(shape[1:]).numel())
    w1a, w1b, w2a, w2b = (parts[name].double() for name in list(parts)[:4])
    reference = ((w1a @ w1b) * (w2a @ w2b) / 4).reshape(shape)
    assert error_of(shape, parts, reference) <= TOLERANCE


def test_loha_with_cores_is_the_elementwise_product_of_two_tucker_decompositions() -> None:
    parts = {f"hada_w{n}_a": randn(4, 24, seed=n) for n in (1, 2)}
    parts |= {f"hada_w{n}_b": randn(4, 40, seed=10 + n) for n in (1, 2)}
    parts |= {f"hada_t{n}": randn(4, 4, 3, 3, seed=20 + n) for n in (1, 2)}
    parts["alpha"] = torch.tensor(2.0)
    halves: list[Tensor] = []
    for n in (1, 2):
        a, b, t = (parts[f"hada_{name}"].double() for name in (f"w{n}_a", f"w{n}_b", f"t{n}"))
        cores = t.permute(2, 3, 0, 1)
        halves.append((a.T @ cores @ b).permute(2, 3, 0, 1))
    assert error_of(KERNEL, parts, halves[0] * halves[1] * (2 / 4)) <= TOLERANCE


def kron(first: Tensor, second: Tensor) -> Tensor:
    """The Kronecker product of the first two axes, by definition."""
    (a, c), (b, d) = first.shape, second.shape[:2]
    result = torch.empty(a * b, c * d, *second.shape[2:], dtype=torch.float64)
    for i in range(a):
        for j in range(c):
            result[i * b : (i + 1) * b, j * d : (j + 1) * d] = first[i, j] * second
    return result


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_dense_lokr_ignores_alpha(kernel: tuple[int, ...]) -> None:
    w1, w2 = randn(4, 5), randn(6, 8, *kernel)
    parts = {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(3.0)}
    assert error_of((24, 40, *kernel), parts, kron(w1.double(), w2.double())) <= TOLERANCE


def test_factorized_lokr_is_divided_by_its_rank() -> None:
    w1a, w1b, w2a, w2b = randn(4, 2), randn(2, 5), randn(6, 3), randn(3, 8)
    second = w2a.double() @ w2b.double()
    dense_first = {"lokr_w1": randn(4, 5), "lokr_w2_a": w2a, "lokr_w2_b": w2b}
    parts = {**dense_first, "alpha": torch.tensor(2.0)}
    reference = kron(randn(4, 5).double(), second) * (2 / 3)
    assert error_of(MATRIX, parts, reference) <= TOLERANCE

    both = {"lokr_w1_a": w1a, "lokr_w1_b": w1b, "lokr_w2_a": w2a, "lokr_w2_b": w2b}
    reference = kron(w1a.double() @ w1b.double(), second)
    assert error_of(MATRIX, both, reference) <= TOLERANCE

    dense_second = {"lokr_w1_a": w1a, "lokr_w1_b": w1b, "lokr_w2": randn(6, 8)}
    reference = kron(w1a.double() @ w1b.double(), randn(6, 8).double()) * (1 / 2)
    assert error_of(MATRIX, {**dense_second, "alpha": torch.tensor(1.0)}, reference) <= TOLERANCE


def test_lokr_of_a_convolution_has_a_flattened_kernel_or_a_core() -> None:
    w1, w2a, w2b = randn(4, 5), randn(6, 3), randn(3, 8 * 9)
    parts = {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b, "alpha": torch.tensor(1.0)}
    second = (w2a.double() @ w2b.double()).reshape(6, 8, 3, 3)
    assert error_of(KERNEL, parts, kron(w1.double(), second) / 3) <= TOLERANCE

    a, t, b = randn(3, 6), randn(3, 3, 3, 3), randn(3, 8)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": t}
    cores = t.double().permute(2, 3, 0, 1)
    second = (a.double().T @ cores @ b.double()).permute(2, 3, 0, 1)
    assert error_of(KERNEL, parts, kron(w1.double(), second)) <= TOLERANCE


@pytest.mark.parametrize("by_output", [True, False])
@pytest.mark.parametrize("shape", [MATRIX, KERNEL])
def test_dora_gives_each_output_or_each_input_its_magnitude(
    shape: tuple[int, ...], by_output: bool
) -> None:
    up, down = randn(24, 4, *[1] * (len(shape) - 2)) * 0.1, randn(4, *shape[1:]) * 0.1
    ones = [1] * (len(shape) - 2)
    magnitude = randn(*((24, 1) if by_output else (1, 40)), *ones).abs() + 0.5
    parts = {"lora_up": up, "lora_down": down, "alpha": torch.tensor(2.0), "dora_scale": magnitude}
    merged = original_of(shape).double()
    merged += (up.double().flatten(1) @ down.double().flatten(1)).reshape(shape) * (2 / 4)
    for index in range(24 if by_output else 40):
        vector = merged[index] if by_output else merged[:, index]
        vector *= magnitude.double().flatten()[index] / vector.square().sum().sqrt()
    delta = build(shape, parts).of(original_of(shape))
    error = (original_of(shape).double() + delta.double() - merged).norm() / merged.norm()
    assert float(error) <= TOLERANCE


@pytest.mark.parametrize("stored_shape", [(24,), (1, 24, 1, 1)])
def test_pefts_magnitude_is_per_output_whatever_its_shape(stored_shape: tuple[int, ...]) -> None:
    """PEFT writes a convolution's as `(1, out, 1, 1)`, which in other files means one per input."""
    magnitude = randn(24).abs() + 0.5
    factors = {"lora_up": randn(24, 4, 1, 1), "lora_down": randn(4, 24, 3, 3)}
    shape = (24, 24, 3, 3)
    peft = build(shape, {**factors, "magnitude": magnitude.reshape(stored_shape)})
    kohya = build(shape, {**factors, "dora_scale": magnitude.reshape(24, 1, 1, 1)})
    original = original_of(shape)
    assert torch.equal(peft.of(original), kohya.of(original))


def test_dora_combines_with_loha_and_lokr() -> None:
    magnitude = randn(24, 1).abs() + 0.5
    lokr = {"lokr_w1": randn(4, 5), "lokr_w2": randn(6, 8)}
    for parts in (loha_parts(40), lokr):
        original = original_of(MATRIX)
        merged = original.double() + build(MATRIX, parts).of(original).double()
        merged *= magnitude.double() / merged.square().sum(dim=1, keepdim=True).sqrt()
        delta = build(MATRIX, {**parts, "dora_scale": magnitude}).of(original)
        torch.testing.assert_close(original.double() + delta.double(), merged, rtol=0, atol=1e-6)


def test_dora_keeps_a_row_of_zeros() -> None:
    parts = {"lora_up": torch.zeros(2, 1), "lora_down": torch.zeros(1, 3)}
    delta = build((2, 3), {**parts, "dora_scale": torch.ones(2, 1)}).of(torch.zeros(2, 3))
    assert torch.equal(delta, torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [MATRIX, KERNEL])
def test_ia3_scales_outputs_or_inputs(shape: tuple[int, ...]) -> None:
    original = original_of(shape).double()
    ones = [1] * (len(shape) - 2)
    outputs, inputs = randn(24), randn(40)
    stored = outputs if not ones else outputs.view(1, 24, 1, 1)
    reference = original * outputs.double().view(24, 1, *ones)
    assert error_of(shape, {"ia3": stored, "on_input": torch.tensor(0)}, reference) <= TOLERANCE
    reference = original * inputs.double().view(1, 40, *ones)
    assert error_of(shape, {"ia3": inputs, "on_input": torch.tensor(1)}, reference) <= TOLERANCE


def test_a_full_delta_returns_a_copy() -> None:
    tensor = randn(*KERNEL)
    delta = build(KERNEL, {"diff": tensor})
    value = delta.of(original_of(KERNEL))
    assert torch.equal(value, tensor)
    value.zero_()
    assert torch.equal(delta.of(original_of(KERNEL)), randn(*KERNEL))


def test_a_norm_uses_a_full_delta() -> None:
    assert error_of((24,), {"w_norm": randn(24)}, randn(24).double()) <= TOLERANCE


@pytest.mark.parametrize("shape", [MATRIX, KERNEL])
@pytest.mark.parametrize("older", [False, True])
def test_glora_depends_on_the_weight(shape: tuple[int, ...], older: bool) -> None:
    ones = [1] * (len(shape) - 2)
    a1, a2 = randn(40, 4, *ones), randn(4, 40, *ones)
    b1, b2 = randn(24, 4, *ones), randn(4, *shape[1:])
    original = original_of(shape).double()
    on_weight = a1.double().flatten(1) @ a2.double().flatten(1)
    reference = (b1.double().flatten(1) @ b2.double().flatten(1)).reshape(shape)
    reference = (reference + torch.einsum("oi...,ij->oj...", original, on_weight)) * (2 / 4)
    swapped = {"a1": a2, "a2": a1, "b1": b2, "b2": b1}
    parts = swapped if older else {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    assert error_of(shape, {**parts, "alpha": torch.tensor(2.0)}, reference) <= TOLERANCE


def cayley(blocks: Tensor, constraint: float) -> Tensor:
    skew = blocks.double() - blocks.double().mT
    norm = skew.square().sum().sqrt()
    if 0 < constraint < norm:
        skew = skew * constraint / norm
    identity = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


@pytest.mark.parametrize("shape", [MATRIX, KERNEL])
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
@pytest.mark.parametrize("rescaled", [False, True])
def test_oft_rotates_blocks_of_outputs(
    shape: tuple[int, ...], alpha: float, rescaled: bool
) -> None:
    blocks = randn(4, 6, 6) * 0.1
    rescale = 1 + randn(24) * 0.1
    parts = {"oft_blocks": blocks, "alpha": torch.tensor(alpha)}
    if rescaled:
        parts["rescale"] = rescale.view(24, *[1] * (len(shape) - 1))
    rotations = cayley(blocks, float(torch.tensor(alpha)) * 24)
    original = original_of(shape).double()
    turned = (torch.block_diag(*rotations).T @ original.flatten(1)).reshape(shape)
    if rescaled:
        turned = turned * rescale.double().view(24, *[1] * (len(shape) - 1))
    assert error_of(shape, parts, turned - original) <= TOLERANCE


def test_lycoris_first_oft_has_the_rotation_itself() -> None:
    rotations = cayley(randn(4, 6, 6), 0).float()
    original = original_of(MATRIX).double()
    reference = torch.block_diag(*rotations.double()).T @ original - original
    assert error_of(MATRIX, {"oft_diag": rotations}, reference) <= TOLERANCE


@pytest.mark.parametrize("shape", [(24, 40), (24, 8, 3, 3)])
def test_boft_rotates_in_butterflies(shape: tuple[int, ...]) -> None:
    """Stage i rotates within groups of outputs at distance ``2^i size / 2``, pair by pair."""
    stages, count, size = 3, 4, 6
    blocks = randn(stages, count, size, size) * 0.1
    rescale = 1 + randn(24, *[1] * (len(shape) - 1)) * 0.1
    rotations = cayley(blocks, 0.05 * 24)
    original = original_of(shape).double()
    weight = original.flatten(1)
    for stage in range(stages):
        distance = 2**stage * size // 2
        order = [
            chunk * 2 * distance + half * distance + offset
            for chunk in range(24 // (2 * distance))
            for offset in range(distance)
            for half in (0, 1)
        ]
        turned = torch.block_diag(*rotations[stage]) @ weight[order]
        weight = torch.empty_like(weight)
        weight[order] = turned
    reference = weight.reshape(shape) * rescale.double() - original
    parts = {"oft_blocks": blocks, "alpha": torch.tensor(0.05), "rescale": rescale}
    assert error_of(shape, parts, reference) <= TOLERANCE


def test_a_sparse_residual_is_added_at_its_indices() -> None:
    up, down = randn(24, 4, 1, 1), randn(4, 40, 3, 3)
    indices = torch.tensor([[0, 5, 23], [0, 17, 359]], dtype=torch.int16)
    values = randn(3, dtype=torch.float16)
    parts = {
        "lora_up": up,
        "lora_down": down,
        "alpha": torch.tensor([4.0]),
        "bias_indices": indices,
        "bias_values": values,
        "bias_size": torch.tensor([24, 360], dtype=torch.int16),
    }
    reference = up.double().flatten(1) @ down.double().flatten(1)
    for row, column, value in zip(*indices.tolist(), values.tolist(), strict=True):
        reference[row, column] += value
    assert error_of(KERNEL, parts, reference.reshape(KERNEL)) <= TOLERANCE


def test_mapping_tensors_preserves_the_delta() -> None:
    parts = {**loha_parts(40), "dora_scale": randn(24, 1).abs()}
    delta = build(MATRIX, parts)
    halved = delta.mapped(Tensor.half)
    assert halved.size_bytes * 2 == delta.size_bytes
    assert torch.equal(
        delta.mapped(torch.clone).of(original_of(MATRIX)), delta.of(original_of(MATRIX))
    )


LORA = {"lora_up": randn(24, 4), "lora_down": randn(4, 40)}
WRONG_SHAPES: list[tuple[str, dict[str, Tensor], str]] = [
    ("rank", {"lora_up": randn(24, 4), "lora_down": randn(3, 40)}, r"factors of shapes .*24, 4"),
    ("outputs", {"lora_up": randn(25, 4), "lora_down": randn(4, 40)}, r"\[25, 40\] for a weight"),
    ("sides", {"lora_up": randn(40, 4), "lora_down": randn(4, 24)}, r"\[40, 24\] for a weight"),
    ("kernel", {"lora_up": randn(24, 4, 1, 1), "lora_down": randn(4, 40, 3, 3)}, r"\[24, 40, 3"),
    ("core", {**LORA, "lora_mid": randn(4, 3, 3, 3)}, "factors of shapes"),
    ("vector", {"lora_up": randn(24), "lora_down": randn(4, 40)}, "factors of shapes"),
    ("alpha", {**LORA, "alpha": randn(2)}, "alpha of shape"),
    ("dora", {**LORA, "dora_scale": randn(40, 1)}, "magnitude of shape"),
    ("dora's kernel", {**LORA, "dora_scale": randn(24, 1, 3, 3)}, "magnitude of shape"),
    ("peft's dora", {**LORA, "magnitude": randn(40)}, "a magnitude for each output"),
    ("loha", {**loha_parts(40), "hada_w2_b": randn(4, 41)}, "halves of shapes"),
    ("lokr", {"lokr_w1": randn(4, 5), "lokr_w2": randn(6, 9)}, r"\[24, 45\] for a weight"),
    ("ia3", {"ia3": randn(24), "on_input": torch.tensor(1)}, "for the inputs of a weight"),
    ("full", {"diff": randn(40, 24)}, r"\[40, 24\] for a weight"),
    ("oft", {"oft_blocks": randn(4, 5, 5)}, "blocks of"),
    ("square", {"oft_blocks": randn(4, 6, 5)}, "rotation blocks of shape"),
    ("rescale", {"oft_blocks": randn(4, 6, 6), "rescale": randn(23)}, "rescale of shape"),
    ("boft", {"oft_blocks": randn(4, 4, 6, 6)}, "4 butterfly stages"),
    (
        "sparse",
        {
            **LORA,
            "bias_indices": torch.tensor([[24], [0]]),
            "bias_values": randn(1),
            "bias_size": torch.tensor([24, 40]),
        },
        "sparse values outside",
    ),
    (
        "glora",
        {"a1": randn(39, 4), "a2": randn(4, 39), "b1": randn(24, 4), "b2": randn(4, 40)},
        "halves of shapes|factors of shapes",
    ),
]


@pytest.mark.parametrize(
    ("parts", "message"),
    [case[1:] for case in WRONG_SHAPES],
    ids=[case[0] for case in WRONG_SHAPES],
)
def test_mismatched_shapes_raise_an_error(parts: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ShapeMismatch, match=message):
        build(MATRIX, parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lora_up": randn(24, 4)}, "no lora_down"),
        ({"lora_down": randn(4, 40), "alpha": randn(1)}, "no lora_up, only alpha, lora_down"),
        ({"hada_w1_a": randn(24, 4)}, "no hada_w1_b"),
        ({"lokr_w1": randn(4, 5)}, "no lokr_w2_a"),
        ({"ia3": randn(24)}, "nothing but ia3"),
        ({"alpha": randn(1)}, "nothing but alpha"),
        ({**LORA, "hada_w1_b": randn(4, 40)}, "hada_w1_b beside"),
        ({"diff": randn(24, 40), "alpha": randn(1)}, "alpha beside diff"),
    ],
)
def test_missing_or_unused_tensors_raise_an_error(parts: dict[str, Tensor], message: str) -> None:
    with pytest.raises(Incomplete, match=message):
        build(MATRIX, parts)


@pytest.mark.parametrize("shape", [(10, 6), (10, 6, 3, 3)])
def test_the_product_of_a_loras_factors_equals_its_delta(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(shape[0], 4, *[1] * (len(shape) - 2), generator=generator)
    down = torch.randn(4, *shape[1:], generator=generator)
    lora = RowwiseLoRADelta(Product(up, down), 0.5)
    original = torch.zeros(shape)
    left, right, scale = lora.factors()
    torch.testing.assert_close(
        (scale * left @ right).view(shape), lora.of(original), rtol=1e-6, atol=1e-6
    )
