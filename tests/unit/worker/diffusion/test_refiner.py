"""The SDXL refiner: detected from its file, loaded, conditioned and encoded as in diffusers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagefleet_shared.errors import CorruptFile, IncompatibleAdapter
from imagefleet_worker.adapters.formats import describe_adapter, load_adapter
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.single_file import load_single_file
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.diffusion.added_cond import added_cond_kwargs
from imagefleet_worker.prompts.cache import PromptEncoder
from imagefleet_worker.prompts.conditioning import Conditioning, PlannedPrompts
from imagefleet_worker.prompts.encode import TextSettings
from imagefleet_worker.prompts.plan import plan_negative, plan_prompt
from imagefleet_worker.weights.diffusers_index import folder_family
from tests.conditioning import encode
from tests.options import PLAIN
from tests.unit.worker.prompts import reference
from tools.make_demo_checkpoint import write_demo_checkpoint

CPU = torch.device("cpu")
LIMIT = 1000
NEGATIVES, PROMPTS = ["", "blurry"], ["a photo of a cat", "A red hat, on a dog; 4k"]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file `refiner`, and the same as the diffusers folder `refiner-folder`."""
    root = tmp_path_factory.mktemp("models")
    path = root / "checkpoints/refiner.safetensors"
    path.parent.mkdir()
    write_demo_checkpoint(path, "sdxl_refiner", seed=2)
    pipeline = load_single_file(path, CPU, torch.float32).pipeline
    pipeline.save_pretrained(root / "checkpoints/refiner-folder")
    return root


@pytest.fixture(scope="module")
def cache(models: Path) -> PipelineCache:
    return PipelineCache(ModelStore(models), CPU, torch.float32, PLAIN, 2**40, 2**40, 0, 1)


@pytest.fixture(params=["refiner", "refiner-folder"])
def warm(request: pytest.FixtureRequest, cache: PipelineCache, models: Path) -> WarmPipeline:
    return cache.get(ModelStore(models).find("checkpoint", request.param))


@pytest.fixture(scope="module")
def theirs(models: Path) -> Any:  # noqa: ANN401 diffusers' annotations forget tensors
    return StableDiffusionXLImg2ImgPipeline.from_pretrained(
        models / "checkpoints/refiner-folder", add_watermarker=False
    )


def test_the_store_knows_its_family_before_it_is_loaded(models: Path) -> None:
    listed = ModelStore(models).list_models("checkpoint")

    assert [(file.name, file.family, file.native_size_px) for file in listed] == [
        ("refiner", "sdxl_refiner", 128),
        ("refiner-folder", "sdxl_refiner", 128),
    ]


def test_it_has_one_text_encoder_and_is_ready_to_run(warm: WarmPipeline) -> None:
    pipeline: Any = warm.pipeline

    assert (warm.family, warm.native_size_px) == ("sdxl_refiner", 128)
    assert (pipeline.text_encoder, pipeline.tokenizer) == (None, None)
    assert pipeline.config.requires_aesthetics_score
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder_2):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    weights = sum(p.nbytes for p in pipeline.unet.parameters())
    assert weights < warm.size_bytes < 2 * weights


def conditioned(warm: WarmPipeline) -> tuple[Tensor, Tensor]:
    """Hidden states and summaries, the negatives first, in batches like diffusers' own."""
    parts = [encode(warm, texts, None, LIMIT) for texts in (NEGATIVES, PROMPTS)]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return torch.cat([part.hidden for part in parts]), torch.cat(pooled)


def test_prompts_are_encoded_as_diffusers_does(
    warm: WarmPipeline,
    theirs: Any,  # noqa: ANN401 as above
) -> None:
    ours, pooled_of_ours = conditioned(warm)
    hidden, negative_hidden, pooled, negative_pooled = theirs.encode_prompt(
        PROMPTS, negative_prompt=NEGATIVES, do_classifier_free_guidance=True
    )

    # Each text is encoded by itself here, so the last bits differ from those of a batch.
    torch.testing.assert_close(ours, torch.cat([negative_hidden, hidden]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        pooled_of_ours, torch.cat([negative_pooled, pooled]), rtol=1e-4, atol=1e-5
    )


def test_an_empty_negative_prompt_is_zeros_and_no_other_is(warm: WarmPipeline) -> None:
    """As in A1111, for base and refiner; for the refiner it was once encoded."""
    pictures = [
        PlannedPrompts(plan_prompt("", 4), plan_negative(negative, 4)) for negative in ("", "bad")
    ]
    conditioning = Conditioning(PromptEncoder(0), warm, pictures, 7.0, 1, TextSettings(None, LIMIT))

    cond = conditioning.at(0)
    assert cond.pooled is not None
    assert cond.hidden.flatten(1).any(dim=1).tolist() == [False, True, True, True]
    assert cond.pooled.any(dim=1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_weighted_prompts_agree_with_a1111s_algorithm(
    clip_skip: int | None, warm: WarmPipeline
) -> None:
    text = "a (cat:1.3) BREAK [blurry], a (red:1.4) hat on a (((dog)))" + " very" * 80
    encoded = encode(warm, [text], clip_skip, LIMIT)
    hidden, pooled = reference.conditioning(warm, text, clip_skip)

    assert pooled is not None
    assert encoded.pooled is not None
    torch.testing.assert_close(encoded.hidden[0], hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.pooled[0], pooled, rtol=0, atol=1e-5)


def evaluated(unet: Any, hidden: Tensor, added: dict[str, Tensor] | None) -> Tensor:  # noqa: ANN401
    noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    latents = noise.repeat(len(hidden), 1, 1, 1)
    return unet(latents, 150, hidden, added_cond_kwargs=added, return_dict=False)[0]


def test_the_unet_has_the_inputs_and_outputs_that_it_has_in_diffusers(
    warm: WarmPipeline,
    theirs: Any,  # noqa: ANN401 as above
) -> None:
    """Hooks the UNet in a whole pipeline call, which decides sizes, scores and rows."""
    calls: list[tuple[Sequence[Any], dict[str, Any], Tensor]] = []

    def record(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        calls.append((args, kwargs, output[0]))

    handle = theirs.unet.register_forward_hook(record, with_kwargs=True)
    theirs.set_progress_bar_config(disable=True)
    theirs(
        PROMPTS,
        image=torch.zeros(2, 3, 96, 128),
        negative_prompt=NEGATIVES,
        num_inference_steps=5,
        strength=0.2,
        guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    handle.remove()
    ((args, kwargs, expected),) = calls

    hidden, pooled = conditioned(warm)
    added = added_cond_kwargs(warm, pooled, width=128, height=96, negatives=2)

    assert added is not None
    theirs_embeds = kwargs["added_cond_kwargs"]["text_embeds"]
    torch.testing.assert_close(added["text_embeds"], theirs_embeds, rtol=1e-4, atol=1e-5)
    assert torch.equal(added["time_ids"], kwargs["added_cond_kwargs"]["time_ids"])
    ours = warm.pipeline.unet(
        *args,
        encoder_hidden_states=hidden,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_aesthetic_score_and_the_prompt_change_the_unets_output(warm: WarmPipeline) -> None:
    conditioning = encode(warm, [PROMPTS[0]] * 2 + [PROMPTS[1]], None, LIMIT)
    added = added_cond_kwargs(warm, conditioning.pooled, width=128, height=96, negatives=1)

    assert added is not None
    assert added["time_ids"].tolist() == [
        [96, 128, 0, 0, 2.5],
        [96, 128, 0, 0, 6.0],
        [96, 128, 0, 0, 6.0],
    ]
    low, high, other = evaluated(warm.pipeline.unet, conditioning.hidden, added)
    assert not torch.equal(low, high)
    assert not torch.allclose(high, other, atol=1e-3)


def test_no_adapter_fits_a_refiner(warm: WarmPipeline, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    block = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = torch.ones(4, 64), torch.ones(64, 4)
    save_file(
        {
            f"lora_unet_{block}.lora_down.weight": down,
            f"lora_unet_{block}.lora_up.weight": up,
        },
        path,
    )

    with pytest.raises(IncompatibleAdapter, match="does not fit the SDXL refiner checkpoint"):
        load_adapter(path, warm.naming)


def test_a_lora_for_a_refiner_is_detected_by_the_width_of_its_context(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    block = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{block}.lora_down.weight": torch.ones(4, 1280),
            f"{block}.lora_up.weight": torch.ones(768, 4),
        },
        path,
    )

    assert describe_adapter(path).family == "sdxl_refiner"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.diffusion_model.out.2.bias", "is not a whole sdxl_refiner model"),
        ("conditioner.embedders.0.model.text_projection", "is not a whole sdxl_refiner model"),
        ("model.diffusion_model.label_emb.0.0.weight", "looks like a Stable Diffusion 2 model"),
    ],
)
def test_a_refiner_that_is_not_whole_is_refused(
    missing: str, message: str, models: Path, tmp_path: Path
) -> None:
    tensors = load_file(models / "checkpoints/refiner.safetensors")
    del tensors[missing]
    save_file(tensors, tmp_path / "part.safetensors")

    with pytest.raises(CorruptFile, match=message):
        load_single_file(tmp_path / "part.safetensors", CPU, torch.float32)


def test_a_base_saved_as_an_img2img_pipeline_is_no_refiner(models: Path, tmp_path: Path) -> None:
    folder = models / "checkpoints/refiner-folder"
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert folder_family(folder) == "sdxl_refiner"
    index["requires_aesthetics_score"] = False
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")

    with pytest.raises(CorruptFile, match="is for StableDiffusionXLImg2ImgPipeline; supported"):
        folder_family(tmp_path)
