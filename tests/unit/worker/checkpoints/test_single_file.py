"""Single-file checkpoints load bit for bit, and invalid ones are refused."""

import json
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file

from imagefleet_shared.errors import CorruptFile, FileUnavailable
from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer, empty_pipeline
from imagefleet_worker.checkpoints.single_file import LoadedCheckpoint, load_single_file
from imagefleet_worker.weights.families import Family, family_of, native_size_px
from imagefleet_worker.weights.ldm_keys import LdmComponent
from imagefleet_worker.weights.safetensors_header import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Header,
    TensorEntry,
)
from tests.full_size import full_size_modules
from tools.demo_models import demo_models
from tools.ldm_checkpoint import ldm_state_dict
from tools.make_demo_checkpoint import write_checkpoint

CPU = torch.device("cpu")
FAMILIES: tuple[Family, ...] = ("sd1", "sdxl", "sdxl_refiner")
READERS = {
    "sd1": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sdxl_refiner": StableDiffusionXLImg2ImgPipeline,
}

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sources() -> dict[Family, dict[LdmComponent, torch.nn.Module]]:
    """The modules that the checkpoints are written from, rounded to float16 like the files."""
    sources: dict[Family, dict[LdmComponent, torch.nn.Module]] = {
        family: demo_models(family, seed=3) for family in FAMILIES
    }
    for modules in sources.values():
        for module in modules.values():
            module.half().float()
    return sources


@pytest.fixture(scope="module")
def checkpoints(
    sources: dict[Family, dict[LdmComponent, torch.nn.Module]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Family, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family, modules in sources.items():
        write_checkpoint(folder / f"{family}.safetensors", family, modules, "demo")
    return {family: folder / f"{family}.safetensors" for family in FAMILIES}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a checkpoint must load with no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(path: Path, dtype: torch.dtype = torch.float32) -> LoadedCheckpoint:
    return load_single_file(path, CPU, dtype)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_equals_the_source_bit_for_bit(
    family: Family,
    checkpoints: dict[Family, Path],
    sources: dict[Family, dict[LdmComponent, torch.nn.Module]],
) -> None:
    loaded = load(checkpoints[family])

    assert loaded.family == family
    assert loaded.native_size_px == 128
    for component, source in sources[family].items():
        weights = getattr(loaded.pipeline, component).state_dict()
        assert weights.keys() == source.state_dict().keys()
        for key, tensor in source.state_dict().items():
            assert torch.equal(weights[key], tensor), (component, key)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_equal_those_of_the_source_modules(
    family: Family,
    checkpoints: dict[Family, Path],
    sources: dict[Family, dict[LdmComponent, torch.nn.Module]],
) -> None:
    """Equal weights are not enough: head counts and activations are in the config."""
    pipeline = load(checkpoints[family]).pipeline
    ids = clip_tokenizer("!")(
        "a photo of a cat", padding="max_length", return_tensors="pt"
    ).input_ids
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)

    with torch.no_grad():
        for component in ("text_encoder", "text_encoder_2"):
            source = sources[family].get(component)
            if source is not None:
                ours, theirs = getattr(pipeline, component)(ids), source(ids)
                assert torch.equal(ours[0], theirs[0])
        context = torch.randn(
            1, 77, pipeline.unet.config["cross_attention_dim"], generator=generator
        )
        ids = 5 if family == "sdxl_refiner" else 6
        added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.full((1, ids), 128.0)}
        ours, theirs = (
            unet(latents, 10, context, added_cond_kwargs=added, return_dict=False)[0]
            for unet in (pipeline.unet, sources[family]["unet"])
        )
        assert torch.equal(ours, theirs)
        source_vae: Any = sources[family]["vae"]
        assert torch.equal(pipeline.vae.decode(latents)[0], source_vae.decode(latents)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_the_same_weights_from_the_file(
    family: Family, checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    """An independent reader: reading the file back with our own key mapping proves little."""
    ours = load(checkpoints[family]).pipeline
    ours.save_pretrained(tmp_path)
    theirs = READERS[family].from_single_file(
        str(checkpoints[family]), config=str(tmp_path), local_files_only=True
    )

    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(ours, component, None) is not None:
            weights = getattr(theirs, component).state_dict()
            for key, tensor in getattr(ours, component).state_dict().items():
                assert torch.equal(weights[key].float(), tensor), (component, key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_cast_including_the_vaes(
    family: Family, dtype: torch.dtype, checkpoints: dict[Family, Path]
) -> None:
    parts = load(checkpoints[family], dtype).pipeline.components.values()

    weights = [p for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters()]
    assert {weight.dtype for weight in weights} == {dtype}


def test_modules_are_in_eval_mode_and_need_no_gradients(checkpoints: dict[Family, Path]) -> None:
    for family in FAMILIES:
        for part in load(checkpoints[family]).pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                assert not part.training
                assert not any(parameter.requires_grad for parameter in part.parameters())


def test_a_checkpoint_in_memory_outlives_its_file(
    checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints["sd1"].read_bytes())
    unet = load(path, torch.float16).pipeline.unet
    before = unet.conv_in.weight.clone()
    with path.open("r+b") as stream:
        stream.write(b"\0" * path.stat().st_size)

    assert torch.equal(unet.conv_in.weight, before)


def test_training_state_and_constants_in_the_file_are_ignored(
    checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    tensors = load_file(checkpoints["sd1"])
    clip = "cond_stage_model.transformer.text_model"
    for key in ("model_ema.decay", "alphas_cumprod", "betas", "sqrt_one_minus_alphas_cumprod"):
        tensors[key] = torch.ones(2)
    tensors[f"{clip}.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["cond_stage_model.logit_scale"] = torch.ones(())

    assert load(saved(tensors, tmp_path)).native_size_px == 512


def test_a_vae_with_matrices_for_its_attention_loads(
    checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    tensors = load_file(checkpoints["sd1"])
    key = "first_stage_model.decoder.mid.attn_1.q.weight"
    tensors[key] = tensors[key].flatten(1)

    vae = load(saved(tensors, tmp_path)).pipeline.vae
    assert torch.equal(
        vae.state_dict()["decoder.mid_block.attentions.0.to_q.weight"], tensors[key].float()
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_clip_without_the_text_model_level_loads(
    family: Family, checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    """NovelAI's checkpoint and its merges used to be refused, and files of newer transformers."""
    tensors = {
        key.replace("transformer.text_model.", "transformer."): tensor
        for key, tensor in load_file(checkpoints[family]).items()
    }
    assert not any(".text_model." in key for key in tensors)

    weights = load(saved(tensors, tmp_path)).pipeline.text_encoder.state_dict()
    for key, tensor in load(checkpoints[family]).pipeline.text_encoder.state_dict().items():
        assert torch.equal(weights[key], tensor), key


@pytest.mark.parametrize("family", ["sdxl", "sdxl_refiner"])
def test_a_projection_stored_as_a_linear_weight_loads(
    family: Family, checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    """SDXL checkpoints of diffusers' own converter used to be refused."""
    tensors = load_file(checkpoints[family])
    [key] = [key for key in tensors if key.endswith("text_projection")]
    tensors[f"{key}.weight"] = tensors.pop(key).T.contiguous()
    ids = clip_tokenizer("!")("a cat", padding="max_length", return_tensors="pt").input_ids

    with torch.no_grad():
        ours, usual = (
            cast(Any, load(path).pipeline).text_encoder_2(ids).text_embeds
            for path in (saved(tensors, tmp_path), checkpoints[family])
        )
    assert torch.equal(ours, usual)


def test_the_tokenizer_matches_clip() -> None:
    tokenizer = clip_tokenizer("<|endoftext|>")

    assert len(tokenizer) == 49_408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (
        clip_tokenizer("!")("a", padding="max_length").input_ids == [49406, 320, 49407] + [0] * 74
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_of_the_released_models_are_derived_from_their_shapes(family: Family) -> None:
    modules = full_size_modules(family)
    shapes = ldm_state_dict(family, modules, torch.float16)
    header = Header(
        file_name="full.safetensors",
        tensors={
            key: TensorEntry(dtype="F16", shape=tuple(tensor.shape), data_offsets=(0, 0))
            for key, tensor in shapes.items()
        },
        metadata={},
    )
    size_px = native_size_px(header, family)
    pipeline = empty_pipeline(header, family, size_px)

    assert family_of(header) == family
    for component, module in modules.items():
        built, released = getattr(pipeline, component).config, cast(Any, module).config
        if component.startswith("text_encoder"):
            built, released = built.to_dict(), released.to_dict()
        # Compared as JSON, where lists equal tuples; image sizes are not part of the architecture.
        differing = {
            key
            for key in released.keys() | built.keys()
            if json.dumps(built.get(key)) != json.dumps(released.get(key))
        }
        assert differing <= {"sample_size", "_use_default_values", "transformer_layers_per_block"}
        assert getattr(pipeline, component).state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    ("family", "released_bytes"),
    [("sd1", 2_132_625_894), ("sdxl", 6_938_078_334), ("sdxl_refiner", 6_075_981_930)],
)
def test_the_released_files_have_the_size_of_our_tensors_and_a_header(
    family: Family, released_bytes: int
) -> None:
    """v1-5-pruned-emaonly-fp16, sd_xl_base_1.0 and sd_xl_refiner_1.0, by their published sizes."""
    shapes = ldm_state_dict(family, full_size_modules(family), torch.float16)
    header_bytes = released_bytes - sum(tensor.nbytes for tensor in shapes.values())

    assert 130 < header_bytes / len(shapes) < 170


def saved(tensors: Tensors, folder: Path) -> Path:
    path = folder / "changed.safetensors"
    save_file(tensors, path)
    return path


def drop(key: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(key)


def put(key: str, *shape: int, dtype: torch.dtype = torch.float16) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(key, torch.zeros(shape, dtype=dtype))


UNET = "model.diffusion_model."
VAE = "first_stage_model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{UNET}out.2.bias"), rf"1 missing \({UNET}out.2.bias\)"),
        (drop(f"{UNET}time_embed.0.weight"), "time_embed.0.weight"),
        (drop(f"{UNET}middle_block.1.proj_in.weight"), "middle_block.1.proj_in.weight"),
        (put(f"{UNET}out.3.weight", 4), rf"1 unexpected \({UNET}out.3.weight\)"),
        (put("edm_mean", 1), r"unexpected \(edm_mean\)"),
        (put(f"{UNET}out.2.bias", 5), r"wrong shape or type \(.*F16\[5\] instead of \[4\]"),
        (put(f"{UNET}out.2.bias", 4, dtype=torch.int8), r"I8\[4\]"),
        (put(f"{VAE}encoder.conv_in.weight", 32, 3, 1, 1), "conv_in.weight"),
        (put(f"{UNET}input_blocks.1.0.in_layers.2.weight", 33, 64, 3, 3), "not a whole sd1 model"),
        (put(f"{VAE}encoder.down.4.block.0.conv1.weight", 1), "5 levels"),
        (put(f"{UNET}input_blocks.0.0.weight", 64, 9, 3, 3), "an inpainting model"),
        (put(f"{UNET}input_blocks.0.0.weight", 64, 8, 3, 3), "InstructPix2Pix"),
        (put(f"{UNET}input_blocks.0.0.weight"), "unknown kind of input"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_with_the_keys(
    change: Callable[[Tensors], None],
    message: str,
    checkpoints: dict[Family, Path],
    tmp_path: Path,
) -> None:
    tensors = load_file(checkpoints["sd1"])
    change(tensors)

    with pytest.raises(CorruptFile, match=message) as refusal:
        load(saved(tensors, tmp_path))
    assert "changed.safetensors" in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "looks_like"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        (f"{UNET}double_blocks.0.img_attn.qkv.weight", "a Flux model"),
        (f"{UNET}joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
        ("conditioner.embedders.0.model.ln_final.weight", "an SDXL refiner without its UNet"),
        ("cond_stage_model.model.ln_final.weight", "a Stable Diffusion 2 model"),
        (f"{UNET}input_blocks.1.0.in_layers.0.weight", "a UNet without its text encoders"),
        ("emb_params", "a textual inversion"),
        ("clip_g", "a textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "the UNet of a diffusers folder"),
        ("decoder.conv_in.weight", "a VAE"),
        ("conv_first.weight", "an upscaler"),
        ("something.else", "no model that is known here"),
    ],
)
def test_another_kind_of_model_is_refused_and_identified(
    key: str, looks_like: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFile, match=looks_like) as refusal:
        load(saved({key: torch.zeros(1)}, tmp_path))
    assert "supported are Stable Diffusion 1.x, SDXL base and SDXL refiner" in str(refusal.value)


def header_file(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header


def many_tensors() -> bytes:
    entry = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({str(number): entry for number in range(MAX_TENSORS + 1)}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .safetensors file"),
        (b"\x08\0\0", "not a .safetensors file"),
        (b"<html><body>Not found", "not a .safetensors file"),
        (header_file(b"{}", MAX_HEADER_BYTES + 1), "not a .safetensors file"),
        (header_file(b"{}", 3), "ends inside its header"),
        (header_file(b"{]"), "damaged header"),
        (header_file(b"[" * 100_000), "damaged header"),
        (header_file(b"[]"), "not a JSON object"),
        (header_file(b'{"a": {"dtype": "F16", "shape": [-1]}}'), "damaged header"),
        (header_file(b'{"__metadata__": {"a": 1}}'), "damaged header"),
        (header_file(many_tensors()), f"at most {MAX_TENSORS}"),
        (
            header_file(b'{"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}'),
            "its header promises",
        ),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)

    with pytest.raises(CorruptFile, match=message):
        load(path)


def test_zips_and_pickled_dicts_never_start_with_a_valid_header_length() -> None:
    starts = [b"PK\x03\x04\0\0\0\0"]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        starts += [pickle.dumps(table, protocol)[:8] for table in ({"": 0}, {"a": "b"}, [{"": 0}])]
    assert all(int.from_bytes(start, "little") > MAX_HEADER_BYTES for start in starts)


def test_a_truncated_checkpoint_is_refused(checkpoints: dict[Family, Path], tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(checkpoints["sd1"].read_bytes()[:-1])

    with pytest.raises(CorruptFile, match=r"short\.safetensors has .* bytes where"):
        load(path)


def test_offsets_that_contradict_the_shapes_are_refused(
    checkpoints: dict[Family, Path], tmp_path: Path
) -> None:
    content = checkpoints["sd1"].read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = f"{UNET}out.2.bias"
    header[key]["data_offsets"][0] += 2
    text = json.dumps(header).encode()
    path = tmp_path / "overlap.safetensors"
    path.write_bytes(header_file(text) + content[8 + length :])

    with pytest.raises(CorruptFile, match=r"overlap\.safetensors is damaged"):
        load(path)


def test_a_pickle_is_refused_whatever_its_suffix_with_conversion_instructions(
    tmp_path: Path,
) -> None:
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    torch.save({"state_dict": {}}, new)
    torch.save({"state_dict": {}}, old, _use_new_zipfile_serialization=False)

    assert zipfile.is_zipfile(new)
    for path in (new, old):
        with pytest.raises(CorruptFile, match=r"(?s)can run code.*weights_only=True") as refusal:
            load(path)
        assert path.name in str(refusal.value)


def test_a_missing_file_raises_file_unavailable(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailable, match=r"gone\.safetensors cannot be read: No such file"):
        load(tmp_path / "gone.safetensors")
