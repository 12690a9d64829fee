"""Module names of adapter files resolve to parameters of full-size SD 1.5 and SDXL."""

from functools import cache
from typing import Any, cast

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.adapters.tensor_roles import split_key
from imagefleet_worker.weights.families import Family
from tests.full_size import full_size_modules
from tests.unit.worker.adapters.key_tables import TABLES, key_table, sources

SD1_ATTENTION, SD1_RESNETS, CLIP_L, BIG_G = 192, 86, 72, 192
SDXL_ATTENTION, SDXL_RESNETS = 722, 66

MODULES = {
    "sd1_attention_processor": 128,
    "sd1_diffusers_0_17": 48 + 4 + 1,
    "sd1_kohya_ldm_lora": SD1_ATTENTION + 8,
    "sd1_kohya_locon": SD1_ATTENTION + SD1_RESNETS + CLIP_L,
    "sd1_kohya_lora": SD1_ATTENTION + CLIP_L,
    "sd1_kohya_no_alpha": 16 * 9,
    "sd1_lycoris_full": 33,
    "sd1_lycoris_ia3": 16 * 5 + 12 * 3,
    "sd1_lycoris_loha": SD1_ATTENTION + SD1_RESNETS + CLIP_L,
    "sd1_lycoris_norm": 16 * 4,
    "sd1_lycoris_wrapper": SD1_ATTENTION + SD1_RESNETS,
    "sd1_peft_lokr": 22,
    "sd1_peft_wrapped": SD1_ATTENTION,
    "sdxl_attention_processor": 560,
    "sdxl_comfy_lora": SDXL_ATTENTION + CLIP_L + BIG_G,
    "sdxl_diffusers_0_19": 560 + 48 + 128,
    "sdxl_kohya_lora": SDXL_ATTENTION + CLIP_L + BIG_G,
    "sdxl_kohya_oft": 560,
    "sdxl_kohya_outer_layers": 7,
    "sdxl_lcm_lora": SDXL_ATTENTION + SDXL_RESNETS,
    "sdxl_lycoris_dora": SDXL_ATTENTION + SDXL_RESNETS + CLIP_L + BIG_G,
    "sdxl_lycoris_loha": SDXL_ATTENTION + SDXL_RESNETS + CLIP_L + BIG_G,
    "sdxl_lycoris_lokr": BIG_G,
    "sdxl_onetrainer_dora": SDXL_ATTENTION + CLIP_L + BIG_G,
    "sdxl_onetrainer_omi": SDXL_ATTENTION + CLIP_L + BIG_G + 1,
    "sdxl_peft_dreambooth": 560 + 48 + 128,
    "sdxl_slider": 280,
}


@cache
def components(family: Family) -> dict[Component, torch.nn.Module]:
    modules = full_size_modules(family)
    return {part: module for part, module in modules.items() if part != "vae"}


@cache
def naming(family: Family) -> Naming:
    return Naming(family, components(family))


def family_of_table(name: str) -> Family:
    return "sd1" if name.startswith("sd1_") else "sdxl"


def module_names(table: str) -> set[str]:
    names: set[str] = set()
    for key in key_table(table):
        split = split_key(key)
        assert split is not None, key
        names.add(split[0])
    return names


def test_every_table_is_tested() -> None:
    assert sorted(MODULES) == TABLES


@pytest.mark.parametrize("table", TABLES)
def test_every_table_cites_its_source(table: str) -> None:
    assert ("source: github.com/" in sources(table)) != ("no list of a real file" in sources(table))


@pytest.mark.parametrize("table", TABLES)
def test_every_module_of_a_real_file_resolves_to_a_distinct_weight(table: str) -> None:
    names = module_names(table)
    targets = {naming(family_of_table(table)).target(name, "weight") for name in names}
    assert None not in targets
    assert len(targets) == len(names) == MODULES[table]


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("sd1", "sd1_kohya_locon", "sd1_lycoris_wrapper"),
        ("sd1", "sd1_kohya_lora", "sd1_peft_wrapped"),
        ("sdxl", "sdxl_kohya_lora", "sdxl_onetrainer_dora"),
        ("sdxl", "sdxl_kohya_lora", "sdxl_comfy_lora"),
        ("sdxl", "sdxl_kohya_oft", "sdxl_attention_processor"),
    ],
)
def test_the_same_layers_in_two_naming_schemes_resolve_to_the_same_weights(
    family: Family, first: str, second: str
) -> None:
    one, other = (
        {naming(family).target(name, "weight") for name in module_names(table)}
        for table in (first, second)
    )
    assert one >= other
    assert {target.component for target in one - other if target} <= {"text_encoder"}


@pytest.mark.parametrize(
    ("family", "larger", "smaller", "difference"),
    [
        ("sd1", "sd1_kohya_locon", "sd1_kohya_ldm_lora", SD1_RESNETS - 8 + CLIP_L),
        ("sdxl", "sdxl_lycoris_dora", "sdxl_lcm_lora", CLIP_L + BIG_G),
        ("sdxl", "sdxl_onetrainer_omi", "sdxl_kohya_lora", 1),
    ],
)
def test_the_layers_of_a_smaller_file_are_a_subset_of_a_larger_ones(
    family: Family, larger: str, smaller: str, difference: int
) -> None:
    one, other = (
        {naming(family).target(name, "weight") for name in module_names(table)}
        for table in (larger, smaller)
    )
    assert one >= other
    assert len(one - other) == difference


def test_ldm_block_names_resolve_as_in_diffusers() -> None:
    unet = cast(UNet2DConditionModel, components("sdxl")["unet"])
    convert = cast(Any, lora_conversion_utils)
    keys = [
        f"{name}.lora_down.weight"
        for name in sorted(module_names("sdxl_lycoris_loha"))
        if name.startswith("lora_unet_")
    ]
    assert len(keys) == SDXL_ATTENTION + SDXL_RESNETS
    for key in keys:
        # One at a time, because the conversion does not preserve the order.
        mapped = convert._maybe_map_sgm_blocks_to_diffusers({key: 0}, unet.config)
        theirs = convert._convert_unet_lora_key(next(iter(mapped)))
        path = theirs.replace("_lora.down", ".lora.down").replace(".processor", "")
        path = path.replace("to_out.lora", "to_out.0.lora").removesuffix(".lora.down.weight")
        ours = naming("sdxl").target(key.removesuffix(".lora_down.weight"), "weight")
        assert ours == Target("unet", f"{path}.weight"), key


PATHS: list[tuple[Family, str, Component, str]] = [
    ("sd1", "lora_unet_conv_in", "unet", "conv_in"),
    ("sd1", "lora_unet_time_embedding_linear_1", "unet", "time_embedding.linear_1"),
    ("sd1", "lora_unet_input_blocks_3_0_op", "unet", "down_blocks.0.downsamplers.0.conv"),
    ("sd1", "lora_unet_output_blocks_2_1_conv", "unet", "up_blocks.0.upsamplers.0.conv"),
    ("sd1", "lora_unet_output_blocks_5_2_conv", "unet", "up_blocks.1.upsamplers.0.conv"),
    ("sd1", "lora_unet.mid_block.attentions.0.proj_in", "unet", "mid_block.attentions.0.proj_in"),
    ("sd1", "unet.base_model.model.conv_out", "unet", "conv_out"),
    ("sd1", "model.diffusion_model.out.2", "unet", "conv_out"),
    ("sd1", "lora_te.text_model.final_layer_norm", "text_encoder", "final_layer_norm"),
    (
        "sd1",
        "lora_te1_text_model_encoder_layers_3_mlp_fc1",
        "text_encoder",
        "encoder.layers.3.mlp.fc1",
    ),
    ("sd1", "text_model.encoder.layers.3.mlp.fc1", "text_encoder", "encoder.layers.3.mlp.fc1"),
    ("sd1", "text_encoder.encoder.layers.3.mlp.fc1", "text_encoder", "encoder.layers.3.mlp.fc1"),
    ("sd1", "oft_unet_mid_block_attentions_0_proj_in", "unet", "mid_block.attentions.0.proj_in"),
    (
        "sd1",
        "clip_l.text_model.encoder.layers.3.mlp.fc1",
        "text_encoder",
        "encoder.layers.3.mlp.fc1",
    ),
    ("sdxl", "lora_unet_label_emb_0_0", "unet", "add_embedding.linear_1"),
    ("sdxl", "lora_unet_time_embed_2", "unet", "time_embedding.linear_2"),
    ("sdxl", "lora_te2_text_projection", "text_encoder_2", "text_projection"),
    (
        "sdxl",
        "lora_te2_transformer_resblocks_31_mlp_c_fc",
        "text_encoder_2",
        "text_model.encoder.layers.31.mlp.fc1",
    ),
    (
        "sdxl",
        "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj",
        "text_encoder_2",
        "text_model.encoder.layers.31.self_attn.q_proj",
    ),
]


@pytest.mark.parametrize(("family", "name", "component", "path"), PATHS)
def test_a_name_resolves_to_its_module(
    family: Family, name: str, component: Component, path: str
) -> None:
    path = _as_installed(components(family)[component], path)
    assert naming(family).target(name, "weight") == Target(component, f"{path}.weight")


def _as_installed(module: torch.nn.Module, path: str) -> str:
    """Insert the level that transformers 5.6 removed from CLIPTextModel, where it still exists."""
    names = dict(module.named_modules())
    return path if path in names else f"text_model.{path}"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("sdxl", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("sdxl", "text_model.encoder.layers.0.mlp.fc1"),
        ("sd1", "lora_te_text_model_encoder_layers_12_mlp_fc1"),
        ("sd1", "lora_unet_down_blocks_0_attentions_0"),
        ("sd1", "lora_unet_"),
        ("sd1", ""),
        ("sdxl", "lora_unet_double_blocks_0_img_attn_proj"),
    ],
)
def test_an_unknown_or_ambiguous_name_resolves_to_none(family: Family, name: str) -> None:
    assert naming(family).target(name, "weight") is None


def test_a_bias_resolves_only_if_the_module_has_one() -> None:
    sd1 = naming("sd1")
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert sd1.target(f"unet.{block}.attn1.to_q", "bias") is None
    bias = Target("unet", f"{block}.attn1.to_out.0.bias")
    assert sd1.target(f"unet.{block}.attn1.to_out.0", "bias") == bias
    assert sd1.shape(bias) == (320,)


def test_two_modules_with_the_same_flat_name_are_refused() -> None:
    encoder = torch.nn.Module()
    encoder.add_module("mlp_fc1", torch.nn.Linear(1, 1))
    encoder.add_module("mlp", torch.nn.ModuleDict({"fc1": torch.nn.Linear(1, 1)}))
    with pytest.raises(AssertionError, match="mlp_fc1"):
        Naming("sd1", {"text_encoder": encoder})
