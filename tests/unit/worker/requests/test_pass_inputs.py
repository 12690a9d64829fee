"""The LoRAs and embeddings that prompts request from a model folder."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefleet_shared.errors import InvalidRequest, PromptTooLong, UnknownLora, WorkerFailure
from imagefleet_shared.request_parts import TextualInversion
from imagefleet_worker.catalog.model_file import ModelFile, ModelMetadata
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.pass_inputs import PassInputResolver
from imagefleet_worker.requests.resolved import PassInputs
from imagefleet_worker.weights.families import Family


def checkpoint(family: Family) -> ModelFile:
    return ModelFile(
        name=family,
        kind="checkpoint",
        path=Path(family),
        size_bytes=1,
        modified_ns=1,
        metadata=ModelMetadata(family=family),
    )


class Folder:
    """A model folder with embeddings, and a resolver over it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._resolver = PassInputResolver(ModelStore(root), 1000)

    def add_embedding(self, name: str, family: Family = "sd1") -> None:
        path = self._root / f"embeddings/{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = {"clip_l": torch.ones(1, 8)}
        if family == "sdxl":
            vectors["clip_g"] = torch.ones(1, 16)
        save_file(vectors, path)

    def inputs(
        self,
        prompt: str,
        negative: str = "",
        family: Family = "sd1",
        inversions: Sequence[TextualInversion] = (),
    ) -> PassInputs:
        return self._resolver.resolve(
            checkpoint(family),
            prompt,
            negative,
            loras=(),
            inversions=inversions,
            emphasis="original",
            steps=10,
        )

    def triggered(self, prompt: str, family: Family = "sd1") -> list[str]:
        inversions = self.inputs(prompt, "", family).inversions
        return [inversion.embedding.name for inversion in inversions]

    def without_adapters(self, inputs: PassInputs, max_tokens: int = 1000) -> PassInputs:
        resolver = PassInputResolver(ModelStore(self._root), max_tokens)
        return resolver.without_adapters(inputs, checkpoint("sdxl_refiner"), "original")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("prompt", ["a cat # <lora:gone:1>", "# <lora:gone:1>\na cat"])
def test_a_comment_names_no_lora_and_no_embedding(folder: Folder, prompt: str) -> None:
    """A1111 removes comments; they were once encoded here, and LoRAs in them merged."""
    folder.add_embedding("bad-hands")
    inputs = folder.inputs(prompt, "blurry # bad-hands <lora:gone>")

    assert (inputs.loras, inputs.inversions) == ((), ())
    assert [text for _, text in inputs.negative.schedule] == ["blurry \n"]
    with pytest.raises(UnknownLora):
        folder.inputs(prompt.replace("#", ""))


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("neg (1)", r"a cat, neg \(1\)"),
        ("by bad artist", "a cat, by bad  artist"),
        ("by bad artist", "a cat, BY bad\nartist"),
        ("by bad artist", "a cat, by (bad:1) artist"),
        ("by bad artist", "a cat, [by bad|bad] artist"),
        ("don’t", "don't"),  # noqa: RUF001
    ],
)
def test_an_embedding_is_found_where_a_text_has_its_tokens(
    folder: Folder, name: str, prompt: str
) -> None:
    """It was looked up in the text as typed, and silently missed."""
    folder.add_embedding(name)
    assert folder.triggered(prompt) == [name]


@pytest.mark.parametrize(("family", "encoders"), [("sd1", 1), ("sdxl", 2)])
def test_of_two_embeddings_of_one_name_the_one_for_the_checkpoints_family_is_used(
    folder: Folder, family: Family, encoders: int
) -> None:
    """A1111's folders may hold both; every prompt with these letters failed."""
    folder.add_embedding("sd15/art")
    folder.add_embedding("sdxl/art", "sdxl")

    assert folder.triggered("a party", family) == []
    for inversions in ((), (TextualInversion(name="art"),)):
        [one] = folder.inputs("an art", "", family, inversions).inversions
        assert len(one.embedding.vectors) == encoders


def test_the_name_of_an_embedding_for_another_family_is_a_word(folder: Folder) -> None:
    """As in A1111; any SDXL job with that word was once rejected."""
    folder.add_embedding("anime")
    assert folder.triggered("an anime girl", "sdxl") == []
    assert folder.triggered("an anime girl", "sd1") == ["anime"]


def test_a_requested_embedding_is_resolved_even_if_incompatible(folder: Folder) -> None:
    """Encoding rejects it later, by name."""
    folder.add_embedding("anime")
    [one] = folder.inputs("anime", "", "sdxl", [TextualInversion(name="anime")]).inversions
    assert one.embedding.vectors.keys() == {"text_encoder"}


def test_two_of_one_name_and_family_fail_only_the_texts_that_trigger_them(folder: Folder) -> None:
    folder.add_embedding("one/art")
    folder.add_embedding("two/art")

    assert folder.triggered("a party") == []
    several = r"several embeddings are named 'art': embeddings/one/art\.safetensors and "
    with pytest.raises(WorkerFailure, match=several):
        folder.inputs("an art")
    with pytest.raises(WorkerFailure, match=several):
        folder.inputs("a cat", inversions=[TextualInversion(name="art")])


def test_names_that_differ_by_case_fail_only_the_texts_that_trigger_them(folder: Folder) -> None:
    folder.add_embedding("Art")
    folder.add_embedding("art")

    assert folder.triggered("a party") == []
    with pytest.raises(InvalidRequest, match="'Art' and 'art' read the same"):
        folder.inputs("an ART")


def test_without_its_embeddings_a_texts_tokens_are_counted_again(folder: Folder) -> None:
    """SDXL's refiner reads their names as words, which take more tokens than their vectors."""
    folder.add_embedding("unaestheticxl-bad-hands", "sdxl")
    inputs = folder.inputs("a cat", "cat " * 73 + "unaestheticxl-bad-hands", "sdxl")
    assert (inputs.windows, len(inputs.inversions)) == (1, 1)

    without = folder.without_adapters(inputs)
    assert (without.windows, without.inversions, without.loras) == (2, (), ())
    assert (without.prompt, without.negative) == (inputs.prompt, inputs.negative)
    with pytest.raises(PromptTooLong):
        folder.without_adapters(inputs, 75)
