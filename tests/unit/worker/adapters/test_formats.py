"""Adapter files are loaded completely or refused."""

import hashlib
import json
import pickle
import random
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, FileUnavailable, IncompatibleAdapter
from imagefleet_worker.adapters.delta import Component, Target
from imagefleet_worker.adapters.formats import AdapterFile, describe_adapter, load_adapter
from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.adapters.kinds.factors import Factors
from imagefleet_worker.weights.adapter_tensors import MAX_PICKLE_BYTES, is_finite
from imagefleet_worker.weights.families import Family
from tests.full_size import full_size_modules
from tests.unit.worker.adapters.key_tables import TABLES, key_table, write_table

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
MLP = "lora_te_text_model_encoder_layers_0_mlp_fc1"
QUERY_TARGET = Target("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")


@cache
def naming(family: Family) -> Naming:
    modules = full_size_modules(family)
    components: dict[Component, torch.nn.Module] = {
        part: module for part, module in modules.items() if part != "vae"
    }
    return Naming(family, components)


def lora(name: str, outputs: int, inputs: int, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(outputs + inputs)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, inputs, generator=generator),
        f"{name}.lora_up.weight": torch.randn(outputs, rank, generator=generator),
        f"{name}.alpha": torch.tensor(1.0),
    }


def complete_lora() -> dict[str, Tensor]:
    return {**lora(QUERY, 1280, 1280), **lora(MLP, 3072, 768)}


def saved(
    folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    path = folder / "style.safetensors"
    save_file(dict(tensors), path, metadata=metadata)
    return path


def load(path: Path, family: Family = "sd1") -> AdapterFile:
    return load_adapter(path, naming(family))


def weight_of(file: AdapterFile, target: Target = QUERY_TARGET) -> Tensor:
    shape = naming("sd1").shape(target)
    return file.adapter.deltas[target].of(torch.zeros(shape))


@pytest.mark.parametrize("table", TABLES)
def test_every_tensor_of_a_real_file_is_used(tmp_path: Path, table: str) -> None:
    family: Family = "sd1" if table.startswith("sd1_") else "sdxl"
    path = tmp_path / "real.safetensors"
    write_table(path, table)
    adapter = load(path, family).adapter
    assert adapter.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    used = 0
    for delta in adapter.deltas.values():
        assert isinstance(delta, Factors)
        used += sum(1 for _ in delta.tensors())
    scalars = sum(shape == () for shape in key_table(table).values())
    assert used + scalars == len(key_table(table))
    assert adapter.size_bytes == sum(delta.size_bytes for delta in adapter.deltas.values())


@pytest.mark.parametrize("table", ["sd1_kohya_locon", "sdxl_kohya_lora", "sdxl_lycoris_loha"])
def test_a_file_for_another_family_is_refused_with_the_family(tmp_path: Path, table: str) -> None:
    family: Family = "sdxl" if table.startswith("sd1_") else "sd1"
    path = tmp_path / "real.safetensors"
    write_table(path, table)
    display_names = {"sd1": "SD 1.x", "sdxl": "SDXL"}
    detected = display_names["sd1" if family == "sdxl" else "sdxl"]
    with pytest.raises(IncompatibleAdapter) as caught:
        load(path, family)
    mismatch = f"the {display_names[family]} checkpoint and looks made for {detected}"
    assert str(caught.value).startswith(f"real.safetensors does not fit {mismatch}: ")
    assert f"of {len(key_table(table))} tensors are for no layer of it (" in str(caught.value)


def test_a_lora_is_read_with_its_metadata(tmp_path: Path) -> None:
    path = saved(tmp_path, complete_lora(), {"ss_output_name": "style"})
    file = load(path)
    assert file.metadata == {"ss_output_name": "style"}
    assert not file.embeddings
    assert set(file.adapter.deltas) == {
        QUERY_TARGET,
        naming("sd1").target(MLP, "weight"),
    }
    up, down = (
        complete_lora()[f"{QUERY}.lora_up.weight"],
        complete_lora()[f"{QUERY}.lora_down.weight"],
    )
    torch.testing.assert_close(weight_of(file), up @ down / 2)
    assert file.adapter.size_bytes == 4 * 2 * (1280 + 1280 + 3072 + 768)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False))
def test_the_order_of_keys_changes_nothing(tmp_path: Path, order: random.Random) -> None:
    tensors = {**complete_lora(), "bundle_emb.cat.string_to_param.*": torch.ones(2, 768)}
    tensors[f"{QUERY}.dora_scale"] = torch.ones(1, 1280)
    keys = list(tensors)
    order.shuffle(keys)
    # A pickle preserves the order, unlike .safetensors.
    path = tmp_path / "style.pt"
    torch.save({key: tensors[key] for key in keys}, path)
    file, expected = load(path), load(saved(tmp_path, tensors))
    assert set(file.adapter.deltas) == set(expected.adapter.deltas)
    for target in expected.adapter.deltas:
        assert torch.equal(weight_of(file, target), weight_of(expected, target))
    assert file.embeddings.keys() == expected.embeddings.keys() == {"cat"}
    assert file.adapter.size_bytes == expected.adapter.size_bytes


def test_weight_and_bias_of_a_layer_are_two_deltas(tmp_path: Path) -> None:
    layer = "lora_unet_conv_in"
    norm = "lora_unet_conv_norm_out"
    tensors = {
        f"{layer}.diff": torch.ones(320, 4, 3, 3),
        f"{layer}.diff_b": torch.ones(320),
        f"{norm}.w_norm": torch.ones(320),
        f"{norm}.b_norm": torch.ones(320),
    }
    names = ("conv_in.weight", "conv_in.bias", "conv_norm_out.weight", "conv_norm_out.bias")
    deltas = load(saved(tmp_path, tensors)).adapter.deltas
    assert set(deltas) == {Target("unet", name) for name in names}


def test_bundled_embeddings_are_separated(tmp_path: Path) -> None:
    tensors = {
        **complete_lora(),
        "bundle_emb.cat.string_to_param.*": torch.ones(2, 768),
        "bundle_emb.dog.clip_l": torch.ones(1, 768),
        "bundle_emb.dog.clip_g": torch.zeros(1, 1280),
    }
    embeddings = load(saved(tmp_path, tensors)).embeddings
    assert {name: set(parts) for name, parts in embeddings.items()} == {
        "cat": {"string_to_param.*"},
        "dog": {"clip_l", "clip_g"},
    }


PEFT_LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"unet.lora_alpha": 8, "unet.r": 2}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 3}}, 1.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"1.to_q": 3, "to_k": 2}}, 4.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_pefts_alpha_is_read_from_the_metadata(
    tmp_path: Path, config: dict[str, object], scale: float
) -> None:
    up, down = torch.randn(1280, 2), torch.randn(2, 1280)
    tensors = {f"{PEFT_LAYER}.lora_A.weight": down, f"{PEFT_LAYER}.lora_B.weight": up}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    delta = weight_of(load(saved(tmp_path, tensors, metadata)))
    torch.testing.assert_close(delta, scale * (up @ down), rtol=1e-5, atol=1e-5)


def test_damaged_metadata_of_peft_is_an_error(tmp_path: Path) -> None:
    for text in ("{", "[1]", '{"unet.lora_alpha": "much"}'):
        path = saved(tmp_path, complete_lora(), {"lora_adapter_metadata": text})
        with pytest.raises(CorruptFile, match=r"style.safetensors has a damaged lora_adapter_m"):
            load(path)


REFUSALS: list[tuple[str, dict[str, Tensor], type[Exception], str]] = [
    (
        "unknown kind",
        {**complete_lora(), f"{QUERY}.lora_sideways": torch.ones(1)},
        IncompatibleAdapter,
        "style.safetensors does not fit the SD 1.x checkpoint: 1 of 7 tensors are of no kind "
        f"that is known here ({QUERY}.lora_sideways)",
    ),
    (
        "no layer",
        {**complete_lora(), **lora("lora_unet_down_blocks_9_proj_in", 4, 4)},
        IncompatibleAdapter,
        "style.safetensors does not fit the SD 1.x checkpoint: 3 of 9 tensors are for no layer of "
        "it (lora_unet_down_blocks_9_proj_in.",
    ),
    (
        "twice",
        {**complete_lora(), **lora(PEFT_LAYER, 1280, 1280)},
        IncompatibleAdapter,
        "3 of 9 tensors are for a layer that has others (",
    ),
    (
        "one part twice",
        {**complete_lora(), f"{QUERY}.lora_A.weight": torch.ones(2, 1280)},
        IncompatibleAdapter,
        "1 of 7 tensors are for a layer that has others (",
    ),
    (
        "shape",
        {**complete_lora(), **lora(QUERY, 1280, 640)},
        IncompatibleAdapter,
        "3 of 6 tensors have the wrong shape or type "
        f"({QUERY}.alpha: [1280, 640] for a weight of [1280, 1280])",
    ),
    (
        "type",
        {**complete_lora(), f"{QUERY}.lora_up.weight": torch.ones(1280, 2, dtype=torch.int8)},
        IncompatibleAdapter,
        "3 of 6 tensors have the wrong shape or type",
    ),
    (
        "bias of a layer without",
        {**complete_lora(), f"{QUERY}.diff_b": torch.ones(1280)},
        IncompatibleAdapter,
        f"1 of 7 tensors are for no layer of it ({QUERY}.diff_b)",
    ),
    (
        "nan",
        {**complete_lora(), f"{QUERY}.lora_up.weight": torch.full((1280, 2), float("nan"))},
        CorruptFile,
        "style.safetensors is damaged: 1 of 6 tensors have values that are not finite "
        f"({QUERY}.lora_up.weight)",
    ),
    (
        "up without down",
        {
            key: tensor
            for key, tensor in complete_lora().items()
            if key != f"{QUERY}.lora_down.weight"
        },
        CorruptFile,
        "style.safetensors is damaged: 2 of 5 tensors do not make a whole "
        f"({QUERY}.alpha: no lora_down, only alpha)",
    ),
    (
        "alpha alone",
        {**lora(MLP, 3072, 768), f"{QUERY}.alpha": torch.ones(())},
        CorruptFile,
        f"1 of 4 tensors do not make a whole ({QUERY}.alpha: nothing but alpha)",
    ),
    (
        "two kinds",
        {**complete_lora(), f"{QUERY}.hada_w1_b": torch.ones(2, 1280)},
        CorruptFile,
        "4 of 7 tensors do not make a whole",
    ),
    ("nothing", {}, CorruptFile, "style.safetensors holds no adapter"),
    (
        "an embedding alone",
        {"bundle_emb.cat.clip_l": torch.ones(1, 768)},
        CorruptFile,
        "style.safetensors holds no adapter",
    ),
]


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [case[1:] for case in REFUSALS],
    ids=[case[0] for case in REFUSALS],
)
def test_an_incomplete_or_incompatible_file_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        load(saved(tmp_path, tensors))
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_only_the_first_keys_are_listed(tmp_path: Path) -> None:
    strange = {f"lora_unet_nowhere_{n}.diff": torch.ones(1) for n in range(9)}
    with pytest.raises(IncompatibleAdapter) as caught:
        load(saved(tmp_path, {**complete_lora(), **strange}))
    assert str(caught.value).endswith(
        ": 9 of 15 tensors are for no layer of it (lora_unet_nowhere_0.diff, "
        "lora_unet_nowhere_1.diff, lora_unet_nowhere_2.diff, …)"
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_of_tensors_is_read(tmp_path: Path, nested: bool) -> None:
    path = tmp_path / "style.bin"
    torch.save({"state_dict": complete_lora()} if nested else complete_lora(), path)
    file = load(path)
    assert file.adapter.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(weight_of(file), weight_of(load(saved(tmp_path, complete_lora()))))


def test_the_first_bytes_determine_the_format_not_the_suffix(tmp_path: Path) -> None:
    path = saved(tmp_path, complete_lora()).rename(tmp_path / "style.pt")
    assert load(path).adapter.deltas
    torch.save(complete_lora(), tmp_path / "pickle.safetensors")
    assert load(tmp_path / "pickle.safetensors").adapter.deltas


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_of_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "style.pt", tmp_path / "ran"
    torch.save({"x": Evil(proof)}, path)
    with pytest.raises(CorruptFile, match=r"style.pt is neither .safetensors nor a pickle of tens"):
        load(path)
    path.write_bytes(pickle.dumps({"x": Evil(proof)}))
    with pytest.raises(CorruptFile, match=r"style.pt is neither .safetensors nor a pickle of tens"):
        load(path)
    assert not proof.exists()


def test_a_pickle_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.save({**complete_lora(), "step": 3}, path)
    with pytest.raises(CorruptFile, match=r"style.pt holds other things than tensors: step"):
        load(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(CorruptFile, match=r"style.pt holds no table of tensors"):
        load(path)


def test_a_pickle_that_expands_when_loaded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.save({f"{QUERY}.diff": torch.zeros(1).expand(100_000, 100_000)}, path)
    with pytest.raises(CorruptFile, match=r"style.pt has tensors larger than the file itself"):
        load(path)
    torch.save({f"{QUERY}.diff": torch.zeros(1280, 1280)}, path)
    compressed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in archive.infolist():
            target.writestr(entry.filename, archive.read(entry))
    with pytest.raises(CorruptFile, match=r"packed.pt .*its zip is compressed"):
        load(compressed)


def test_a_pickle_of_sparse_meta_or_complex_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    for tensor in (torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")):
        torch.save({f"{QUERY}.diff": tensor}, path)
        with pytest.raises(CorruptFile, match=r"style.pt (holds other things|is neither)"):
            load(path)
    torch.save({**complete_lora(), f"{QUERY}.alpha": torch.ones((), dtype=torch.complex64)}, path)
    with pytest.raises(IncompatibleAdapter, match=r"3 of 6 tensors have the wrong shape or type"):
        load(path)


def test_a_checkpoint_in_the_wrong_folder_is_refused_by_its_header(
    demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Path, "read_bytes")
    with pytest.raises(CorruptFile, match=r"demo.safetensors holds no adapter"):
        load(demo_models / "checkpoints/demo.safetensors")


def test_a_huge_pickle_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    with path.open("wb") as stream:
        stream.truncate(MAX_PICKLE_BYTES + 1)
    with pytest.raises(CorruptFile, match=r"style.pt is a pickle of more than 2147483648 bytes"):
        load(path)


def test_damaged_and_missing_files_raise_different_errors(tmp_path: Path) -> None:
    path = saved(tmp_path, complete_lora())
    content = path.read_bytes()
    for cut in (0, 4, 30, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(CorruptFile, match=r"style.safetensors"):
            load(path)
    with pytest.raises(FileUnavailable, match=r"gone.safetensors cannot be read"):
        load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_non_finite_values_are_detected_in_every_dtype(dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    assert is_finite(torch.tensor([0.0, -largest, largest]).to(dtype))
    assert is_finite(torch.empty(0, dtype=dtype))
    assert not is_finite(torch.tensor([0.0, float("nan")]).to(dtype))
    if dtype != torch.float8_e4m3fn:  # It has no infinity.
        assert not is_finite(torch.tensor([1.0, float("inf")]).to(dtype))
        assert not is_finite(torch.tensor([1.0, -float("inf")]).to(dtype))


def test_float64_beyond_float32_is_not_finite() -> None:
    assert not is_finite(torch.tensor([1e300], dtype=torch.float64))


KINDS = {
    "sd1_kohya_locon": ("locon", "lora"),
    "sd1_lycoris_full": ("full",),
    "sd1_lycoris_ia3": ("ia3",),
    "sd1_lycoris_loha": ("loha",),
    "sd1_lycoris_norm": ("norm",),
    "sd1_lycoris_wrapper": ("loha",),
    "sd1_peft_lokr": ("lokr",),
    "sdxl_kohya_oft": ("oft",),
    "sdxl_kohya_outer_layers": ("locon", "lora"),
    "sdxl_lcm_lora": ("locon", "lora"),
    "sdxl_lycoris_dora": ("dora", "locon", "lora"),
    "sdxl_lycoris_loha": ("loha",),
    "sdxl_lycoris_lokr": ("lokr",),
    "sdxl_onetrainer_dora": ("dora", "lora"),
    "sdxl_onetrainer_omi": ("dora", "lora"),
}
"""All other tables are plain LoRAs."""
# Middle and upper blocks in diffusers' names are the same in SD 1.x and SD 2.x.
AMBIGUOUS_FAMILY = {"sd1_peft_lokr"}


@pytest.mark.parametrize("table", TABLES)
def test_a_file_is_described_from_its_header(tmp_path: Path, table: str) -> None:
    path = tmp_path / "real.safetensors"
    write_table(path, table)
    description = describe_adapter(path)
    assert description.family == (None if table in AMBIGUOUS_FAMILY else table.split("_")[0])
    assert description.kinds == KINDS.get(table, ("lora",))
    assert (description.trigger_words, description.bundles_embeddings) == ((), False)


def test_a_description_mentions_bundled_embeddings(tmp_path: Path) -> None:
    tensors = {**complete_lora(), "bundle_emb.cat.clip_l": torch.ones(1, 768)}
    assert describe_adapter(saved(tmp_path, tensors)).bundles_embeddings


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (
            {"modelspec.trigger_phrase": " sks style ", "ss_tag_frequency": '{"a": {"x": 1}}'},
            ["sks style"],
        ),
        (
            {"ss_tag_frequency": '{"10_a": {"cat": 3, "dog ": 1}, "5_b": {"dog": 9, "ant": 3}}'},
            ["dog", "ant", "cat"],
        ),
        (
            {"ss_tag_frequency": json.dumps({"a": {f"t{n:02}": n for n in range(30)}})},
            [f"t{n}" for n in range(29, 19, -1)],
        ),
        ({"ss_tag_frequency": "{"}, []),
        ({"ss_tag_frequency": '{"a": 3}'}, []),
    ],
)
def test_trigger_words_come_from_the_metadata(
    tmp_path: Path, metadata: dict[str, str], words: list[str]
) -> None:
    assert list(describe_adapter(saved(tmp_path, complete_lora(), metadata)).trigger_words) == words


@pytest.mark.parametrize(
    ("key", "metadata", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", {}, None),
        ("lora_unet_mid_block_resnets_0_conv1.lora_down.weight", {}, None),
        (
            "lora_unet_mid_block_resnets_0_conv1.lora_down.weight",
            {"ss_base_model_version": "sdxl_base_v1-0"},
            "sdxl",
        ),
        (
            "lora_unet_mid_block_resnets_0_conv1.lora_down.weight",
            {"modelspec.architecture": "stable-diffusion-v1/lora"},
            "sd1",
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            {},
            None,
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            {"ss_base_model_version": "sd_v1"},
            "sd1",
        ),
        (
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
            {"ss_base_model_version": "sd_v1"},
            "sdxl",
        ),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", {}, "sd1"),
        # Transformers of other models have as many blocks as SDXL's, but no UNet around them.
        ("transformer.transformer_blocks.10.attn.to_q.lora_A.weight", {}, None),
        ("lycoris_transformer_blocks_3_attn_to_k.lora_down.weight", {}, None),
        ("unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight", {}, "sdxl"),
        ("unet.middle_block.1.transformer_blocks.9.attn1.to_q.lora_down.weight", {}, "sdxl"),
        # As wide as SD 2.x's text encoder.
        (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
            {},
            None,
        ),
    ],
)
def test_the_family_is_detected_if_possible(
    tmp_path: Path, key: str, metadata: dict[str, str], family: Family | None
) -> None:
    assert describe_adapter(saved(tmp_path, {key: torch.ones(4, 1024)}, metadata)).family == family


def test_a_pickle_is_described_too(tmp_path: Path) -> None:
    torch.save(complete_lora(), tmp_path / "style.pt")
    description = describe_adapter(tmp_path / "style.pt")
    assert (description.kinds, description.family) == (("lora",), "sd1")
