"""Unusual adapter files found in the wild are interpreted correctly or refused clearly."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, IncompatibleAdapter
from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.adapters.formats import AdapterFile, describe_adapter, load_adapter
from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.weights.families import Family
from tests.full_size import full_size_modules

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
QUERY = f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_q"
QUERY_TARGET = Target("unet", f"{BLOCK}.attn1.to_q.weight")
SIZE = 1280


@cache
def naming(family: Family) -> Naming:
    modules = full_size_modules(family)
    components: dict[Component, torch.nn.Module] = {
        part: module for part, module in modules.items() if part != "vae"
    }
    return Naming(family, components)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def lora(module: str, outputs: int = SIZE, inputs: int = SIZE, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {
        f"{module}.lora_down.weight": torch.randn(rank, inputs, generator=generator),
        f"{module}.lora_up.weight": torch.randn(outputs, rank, generator=generator),
    }


def saved(
    folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    path = folder / "style.safetensors"
    save_file(dict(tensors), path, metadata=metadata)
    return path


def load(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
    family: Family = "sd1",
) -> AdapterFile:
    return load_adapter(saved(folder, tensors, metadata), naming(family))


def query_of(file: AdapterFile) -> Tensor:
    return file.adapter.deltas[QUERY_TARGET].of(torch.ones(SIZE, SIZE))


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(4.0),
        torch.tensor([4.0]),
        torch.tensor([[4.0]], dtype=torch.float16),
        torch.tensor(4.0, dtype=torch.bfloat16),
        torch.tensor(4),
        torch.tensor([4], dtype=torch.int32),
    ],
)
def test_an_alpha_may_have_any_shape_and_dtype(tmp_path: Path, alpha: Tensor) -> None:
    factors = lora(QUERY)
    expected = 2 * factors[f"{QUERY}.lora_up.weight"] @ factors[f"{QUERY}.lora_down.weight"]
    file = load(tmp_path, {**factors, f"{QUERY}.alpha": alpha})
    torch.testing.assert_close(query_of(file), expected)


@pytest.mark.parametrize(
    "module",
    [
        QUERY,
        # As written by diffusers' DoRA conversion (ComfyUI issue 3494): dots and underscores mixed.
        f"lora_unet_{BLOCK.replace('.', '_')}_attn1.to_q",
        f"unet.{BLOCK}.attn1.to_q",
        f"unet.base_model.model.{BLOCK}.attn1.to_q",
        f"base_model.model.{BLOCK}.attn1.to_q",
        f"{BLOCK}.attn1.to_q",
    ],
)
@pytest.mark.parametrize(
    "magnitude",
    [
        "lora_magnitude_vector",
        "lora_magnitude_vector.weight",
        "lora_magnitude_vector.default.weight",
        "lora_magnitude_vector.default_0",
    ],
)
def test_pefts_magnitude_is_found_under_every_key(
    tmp_path: Path, module: str, magnitude: str
) -> None:
    tensors = {**lora(module), f"{module}.{magnitude}": torch.full((SIZE,), 3.0)}
    # In DoRA the norm of every output's row becomes its magnitude, whatever the factors are.
    merged = query_of(load(tmp_path, tensors)) + 1
    torch.testing.assert_close(merged.norm(dim=1), torch.full((SIZE,), 3.0))


@pytest.mark.parametrize("name", ["default", "default_0", "style_v1"])
def test_keys_may_contain_pefts_adapter_name(tmp_path: Path, name: str) -> None:
    up, down = torch.randn(SIZE, 2), torch.randn(2, SIZE)
    module = f"base_model.model.{BLOCK}.attn1.to_q"
    tensors = {f"{module}.lora_A.{name}.weight": down, f"{module}.lora_B.{name}.weight": up}
    torch.testing.assert_close(query_of(load(tmp_path, tensors)), up @ down)


def test_a_bundled_embedding_may_have_spaces_in_its_name(tmp_path: Path) -> None:
    """OneTrainer issue 485."""
    tensors = {**lora(QUERY), "bundle_emb.ema yasuhara.clip_l": torch.ones(2, 768)}
    assert load(tmp_path, tensors).embeddings.keys() == {"ema yasuhara"}


def test_megabytes_of_metadata_are_read(tmp_path: Path) -> None:
    """kohya writes every tag of the training set into the header (sd-scripts issue 1380), and files
    with more than 8 MiB of tags used to be mistaken for damaged pickles."""
    tags = {f"a tag of the training set, number {n}": n for n in range(240_000)}
    metadata = {
        "ss_tag_frequency": json.dumps({"10_folder": tags}),
        "ss_network_args": '{"algo": "locon", "conv_dim": "4"}',
        "ss_base_model_version": "sd_v1",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.resolution": "512x512",
    }
    assert len(metadata["ss_tag_frequency"]) > 8 * 2**20
    assert load(tmp_path, lora(QUERY), metadata).metadata == metadata
    description = describe_adapter(tmp_path / "style.safetensors")
    assert description.trigger_words[0] == "a tag of the training set, number 239999"
    assert description.kinds == ("lora",)


FLUX = "transformer.single_transformer_blocks.0.attn.to_q"
FOREIGN: list[tuple[str, dict[str, Tensor], str]] = [
    (
        # github.com/bmaltais/kohya_ss issue 620.
        "SD 2.x's text encoder alone",
        {
            **lora("lora_te_text_model_encoder_layers_3_mlp_fc1", 4096, 1024),
            **lora("lora_te_text_model_encoder_layers_17_mlp_fc1", 4096, 1024),
        },
        "looks made for SD 2.x: 2 of 4 tensors are for no layer of it",
    ),
    (
        "SD 2.x by sd-scripts",
        {
            **lora(QUERY),
            **lora(QUERY.replace("attn1_to_q", "attn2_to_k"), SIZE, 1024),
            **lora("lora_te_text_model_encoder_layers_0_mlp_fc1", 4096, 1024),
        },
        "looks made for SD 2.x: 4 of 6 tensors have the wrong shape",
    ),
    (
        "Flux by diffusers",
        {f"{FLUX}.lora_A.weight": zeros(2, 3072), f"{FLUX}.lora_B.weight": zeros(3072, 2)},
        "looks made for Flux: 2 of 2 tensors are for no layer of it",
    ),
    (
        # ComfyUI issue 3701.
        "SD 3 by OneTrainer",
        lora("lora_te3_encoder_block_0_layer_0_SelfAttention_k", 64, 64),
        "looks made for SD 3: 2 of 2 tensors are for no layer of it",
    ),
    (
        # ComfyUI issue 5417.
        "SD 3.5 by SimpleTuner",
        lora("lycoris_transformer_blocks_3_attn2_to_k", 64, 64),
        "does not fit the SD 1.x checkpoint: 2 of 2 tensors are for no layer of it",
    ),
    (
        # Written by an A1111 extension (sd_dreambooth_extension issue 1450); the block is unknown.
        "no block",
        lora("0.attn1.to_k", 320, 320),
        "does not fit the SD 1.x checkpoint: 2 of 2 tensors are for no layer of it",
    ),
    (
        # diffusers pull request 3437: four pairs per projection, of which one was used.
        "CLIP's projections by diffusers for a month of 2023",
        lora("text_encoder.text_model.encoder.layers.0.self_attn.k_proj.to_q", 768, 768),
        "does not fit the SD 1.x checkpoint: 2 of 2 tensors are for no layer of it",
    ),
]


@pytest.mark.parametrize(
    ("tensors", "message"), [case[1:] for case in FOREIGN], ids=[case[0] for case in FOREIGN]
)
def test_a_file_for_another_model_is_refused_and_identified(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(IncompatibleAdapter) as caught:
        load(tmp_path, tensors)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "suffix",
    [
        # LyCORIS multiplies it into a factor before saving, so its files never have it.
        "scalar",
        # ComfyUI's: weights that replace others, or that are padded first.
        "set_weight",
        "reshape_weight",
        # PEFT's lora_bias.
        "lora_B.bias",
    ],
)
def test_an_unsupported_tensor_that_affects_the_image_is_not_ignored(
    tmp_path: Path, suffix: str
) -> None:
    with pytest.raises(IncompatibleAdapter, match="1 of 3 tensors are of no kind") as caught:
        load(tmp_path, {**lora(QUERY), f"{QUERY}.{suffix}": torch.ones(1)})
    assert f"({QUERY}.{suffix})" in str(caught.value)


def test_a_file_of_an_unknown_kind_alone_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """ComfyUI issue 5230: sd-scripts' OFT of Flux has one tensor for each of several rotations."""
    module = "oft_unet_single_blocks_7_linear1"
    tensors = {f"{module}.alpha": torch.tensor(1e-3), f"{module}.oft_blocks.0": zeros(4, 8, 8)}
    with pytest.raises(CorruptFile, match=r"style\.safetensors holds no adapter of a known kind"):
        load(tmp_path, tensors)


def test_metadata_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"ss_network_dim": 4}}).encode()
    path = tmp_path / "style.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CorruptFile, match=r"style\.safetensors"):
        load_adapter(path, naming("sd1"))
