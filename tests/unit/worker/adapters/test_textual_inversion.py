"""Textual inversion files load in every known layout, and invalid files are refused."""

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from imagefleet_shared.errors import CorruptFile, FileUnavailable, IncompatibleAdapter
from imagefleet_worker.adapters.textual_inversion import (
    Embedding,
    TextEncoder,
    bundled_embeddings,
    load_embedding,
    require_compatible,
)

L = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
G = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))


def webui(vectors: object) -> dict[str, object]:
    """The dict that A1111 saves."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": vectors,
        "name": "trained-as",
        "step": 500,
        "sd_checkpoint": "deadbeef",
        "sd_checkpoint_name": None,
    }


def pickled(content: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def written(tmp_path: Path, content: bytes, name: str = "style.pt") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def assert_vectors(embedding: Embedding, expected: Mapping[str, Tensor]) -> None:
    assert embedding.vectors.keys() == expected.keys()
    for name, vectors in embedding.vectors.items():
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors, expected[name])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a1111.pt", pickled(webui({"*": L}))),
        ("a1111_parameter.pt", pickled(webui({"*": nn.Parameter(L)}))),
        ("a1111_legacy.pt", pickled(webui({"*": nn.Parameter(L)}), zipped=False)),
        ("original.pt", pickled(webui(nn.ParameterDict({"*": nn.Parameter(L)})))),
        ("a1111.safetensors", save({"emb_params": L})),
        ("diffusers.bin", pickled({"<cat-toy>": L})),
        ("diffusers.safetensors", save({"<cat-toy>": L})),
        ("clip_l.safetensors", save({"clip_l": L})),
        ("suffix_lies.safetensors", pickled({"<cat-toy>": L})),
        ("suffix_lies.pt", save({"emb_params": L})),
    ],
)
def test_every_layout_loads_the_same_vectors(tmp_path: Path, name: str, content: bytes) -> None:
    embedding = load_embedding(written(tmp_path, content, name))

    assert embedding.name == name.rpartition(".")[0]
    assert embedding.sha256 == hashlib.sha256(content).hexdigest()
    assert embedding.num_tokens == 3
    assert_vectors(embedding, {"text_encoder": L})


@pytest.mark.parametrize(
    "content",
    [
        save({"clip_l": L, "clip_g": G}),
        pickled({"clip_g": G, "clip_l": L}),
        save({"text_encoders_0": L, "text_encoders_1": G}),
    ],
)
def test_sdxl_has_vectors_for_both_encoders(tmp_path: Path, content: bytes) -> None:
    embedding = load_embedding(written(tmp_path, content))
    assert_vectors(embedding, {"text_encoder": L, "text_encoder_2": G})


REAL: list[tuple[str, dict[str, tuple[int, ...]], dict[TextEncoder, int]]] = [
    # github.com/invoke-ai/InvokeAI at 8e71a8a: test_embedding.safetensors of its tests.
    ("InvokeAI's", {"emb_params": (5, 768)}, {"text_encoder": 768}),
    # github.com/huggingface/diffusers pull request 4903 (fofr/sdxl-2004): keys; two tokens.
    (
        "a replicate trainer's",
        {"text_encoders_0": (2, 768), "text_encoders_1": (2, 1280)},
        {"text_encoder": 768, "text_encoder_2": 1280},
    ),
    # diffusers issue 8854 (unaestheticXL_Jug6) and pull request 6977 (web_y2k_emb): keys.
    (
        "A1111's for SDXL",
        {"clip_g": (8, 1280), "clip_l": (8, 768)},
        {"text_encoder": 768, "text_encoder_2": 1280},
    ),
]


@pytest.mark.parametrize(
    ("shapes", "widths"), [real[1:] for real in REAL], ids=[r[0] for r in REAL]
)
def test_a_real_file_fits_its_checkpoint(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], widths: dict[TextEncoder, int]
) -> None:
    content = save({key: torch.zeros(shape) for key, shape in shapes.items()})
    embedding = load_embedding(written(tmp_path, content))
    require_compatible(embedding, widths)
    assert embedding.num_tokens == next(iter(shapes.values()))[0]


def test_a_single_vector_may_lack_its_first_dimension(tmp_path: Path) -> None:
    assert_vectors(
        load_embedding(written(tmp_path, pickled({"<toy>": L[0]}))), {"text_encoder": L[:1]}
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = L.to(dtype)
    embedding = load_embedding(written(tmp_path, save({"emb_params": stored})))
    assert_vectors(embedding, {"text_encoder": stored.float()})


def test_a_header_of_128_bytes_is_not_mistaken_for_a_pickle(tmp_path: Path) -> None:
    """Such a .safetensors file starts with 0x80, as pickles do."""
    for length in range(1, 120):
        content = save({"t" * length: L[:1]})
        if content[0] == 0x80:
            break
    else:
        pytest.fail("no header of 128 bytes")
    assert_vectors(load_embedding(written(tmp_path, content)), {"text_encoder": L[:1]})


class _RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (
        pickled(webui({"*": L}) | {"name": _RunsCode()}, zipped=zipped),
        pickle.dumps(_RunsCode()),
    ):
        with pytest.raises(CorruptFile):
            load_embedding(written(tmp_path, content))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x02garbage",
        b"an error page from a web server",
        save({"emb_params": L})[:-1],
        save({"emb_params": L}) + b"x",
        pickled(webui({"*": L}))[:-100],
        pickled(webui({"*": L}), zipped=False)[:-100],
        pickled(webui({"*": L, "+": L})),
        pickled(webui({})),
        pickled(webui(None)),
        pickled({}),
        pickled([L]),
        pickled(L),
        pickled({"a": L, "b": L}),
        pickled({"a": L, "step": 3}),
        save({}),
        save({"a": L, "b": L + 1}),
        save({"clip_l": L, "clip_g": G, "more": L + 1}),
        save({"clip_l": L, "clip_g": G[:2]}),
        save({"clip_l": L, "text_encoders_0": L + 1}),
        # SD 3's and Flux's third encoder, and vectors inserted after the encoder (OneTrainer).
        save({"clip_l": L, "clip_g": G, "t5xxl": L + 1}),
        save({"clip_l": L, "t5": L + 1}),
        save({"emb_params": L, "emb_params_out": L + 1}),
        save({"clip_l": L, "clip_g": G, "clip_l_out": L + 1, "clip_g_out": G + 1}),
        save({"lora_unet_a.lora_down.weight": L, "lora_unet_a.lora_up.weight": G}),
        save({"emb_params": L.long()}),
        save({"emb_params": L[:, :0]}),
        save({"emb_params": L[0, 0]}),
        save({"emb_params": L[None]}),
        save({"emb_params": torch.zeros(76, 4)}),
        save({"emb_params": torch.full((1, 4), torch.nan)}),
        save({"emb_params": torch.tensor([[1.0, torch.inf]])}),
        save({"emb_params": torch.tensor([[1e300]], dtype=torch.float64)}),
        pickled({"a": L.to_sparse()}),
        pickled({"a": L.to("meta")}),
        pickled({"a": torch.ones(1, 1).expand(1, 10**12)}),
    ],
)
def test_an_invalid_textual_inversion_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"style\.pt"):
        load_embedding(written(tmp_path, content))


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_at_any_byte_is_detected_or_harmless(tmp_path: Path, zipped: bool) -> None:
    """With any byte inverted, the file loads as a valid embedding or raises `CorruptFile`."""
    valid = pickled(webui({"*": L[:1, :4].clone()}), zipped=zipped)
    for index in range(0, len(valid), 3):
        content = bytearray(valid)
        content[index] ^= 0xFF
        try:
            embedding = load_embedding(written(tmp_path, bytes(content)))
        except CorruptFile:
            continue
        assert all(vectors.isfinite().all() for vectors in embedding.vectors.values())


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with path.open("wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(CorruptFile, match="larger than any textual inversion"):
        load_embedding(path)


def test_a_missing_file_raises_file_unavailable(tmp_path: Path) -> None:
    with pytest.raises(FileUnavailable, match=r"gone\.pt"):
        load_embedding(tmp_path / "gone.pt")


def test_a_replaced_file_is_another_embedding(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file({"emb_params": L}, path)
    first = load_embedding(path)
    assert first == load_embedding(path)
    save_file({"emb_params": L + 1}, path)
    assert first != load_embedding(path)


def test_an_embedding_must_fit_every_text_encoder() -> None:
    sd1 = Embedding("a", "0", {"text_encoder": torch.zeros(1, 768)})
    sd2 = Embedding("b", "0", {"text_encoder": torch.zeros(1, 1024)})
    sdxl = Embedding(
        "c", "0", {"text_encoder_2": torch.zeros(1, 1280), "text_encoder": torch.zeros(1, 768)}
    )
    require_compatible(sd1, {"text_encoder": 768})
    require_compatible(sdxl, {"text_encoder": 768, "text_encoder_2": 1280})
    with pytest.raises(IncompatibleAdapter) as caught:
        require_compatible(sd2, {"text_encoder": 768})
    assert str(caught.value) == (
        "embedding 'b' is for text_encoder of width 1024; "
        "the checkpoint has text_encoder of width 768"
    )
    for embedding in (sd1, sd2):
        with pytest.raises(IncompatibleAdapter):
            require_compatible(embedding, {"text_encoder": 768, "text_encoder_2": 1280})
    with pytest.raises(IncompatibleAdapter):
        require_compatible(sdxl, {"text_encoder": 768})


def test_embeddings_bundled_in_a_lora_are_found_by_name() -> None:
    tensors = {
        "lora_unet_a.lora_down.weight": torch.zeros(1),
        "bundle_emb.two.clip_l": L,
        "bundle_emb.two.clip_g": G,
        "bundle_emb.one.string_to_param.*": L,
        "bundle_emb.one.string_to_token.*": torch.tensor(265),
        "bundle_emb.three.emb_params": L[0],
    }

    one, three, two = bundled_embeddings(tensors, "cafe")

    assert [found.name for found in (one, two, three)] == ["one", "two", "three"]
    assert {found.sha256 for found in (one, two, three)} == {"cafe"}
    assert_vectors(one, {"text_encoder": L})
    assert_vectors(two, {"text_encoder": L, "text_encoder_2": G})
    assert_vectors(three, {"text_encoder": L[:1]})


def test_a_lora_without_embeddings_has_none() -> None:
    assert bundled_embeddings({"lora_unet_a.alpha": torch.tensor(1.0)}, "cafe") == ()


@pytest.mark.parametrize(
    "keys",
    [["bundle_emb.a"], ["bundle_emb.a.x", "bundle_emb.a.y"], ["bundle_emb.a.string_to_token.*"]],
)
def test_a_damaged_bundle_is_refused(keys: list[str]) -> None:
    with pytest.raises(CorruptFile, match=r"bundle_emb\.a"):
        bundled_embeddings(dict.fromkeys(keys, L), "cafe")
