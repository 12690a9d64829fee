"""Writing infotext, as A1111 and its readers expect it."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from imagefleet_shared.infotext import Models, generated, parse, read, upscaled
from imagefleet_shared.request_parts import (
    FaceRestore,
    HiresPass,
    ImageRef,
    Inpaint,
    LoRA,
    TextualInversion,
    UpscalePass,
)
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest

SHA = "0123456789abcdef" * 4
DEMO = Models("demo", SHA, {}, {})
IMAGE = ImageRef(key="inputs/x.png")


def text(prompt: str = "a fox", **fields: object) -> str:
    values: dict[str, Any] = {"prompt": prompt, "width": 512, "height": 768, **fields}
    return generated(GenerateRequest(**values), 42, DEMO)


def settings(written: str) -> dict[str, str]:
    """The last line as A1111 reads it: by its own pattern."""
    line = written.split("\n")[-1]
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line)
    return {key: json.loads(value) if value[0] == '"' else value for key, value in pairs}


def test_the_three_parts_are_on_separate_lines() -> None:
    assert text(negative_prompt="fog") == (
        "a fox\nNegative prompt: fog\nSteps: 25, Sampler: Euler, Schedule type: Automatic, "
        "CFG scale: 7, Seed: 42, Size: 512x768, Model hash: 0123456789, Model: demo, RNG: CPU, "
        "Version: Imagefleet 0.1.0"
    )


def test_labels_are_in_the_order_of_a1111() -> None:
    labels = settings(
        text(
            variation_seed=5,
            variation_strength=0.25,
            seed_resize_from=(512, 512),
            clip_skip=1,
            hires=HiresPass(scale=2, scheduler="heun", prompt="owl, fox", negative_prompt="fog"),
            eta=0.5,
            emphasis="no_norm",
            refiner_checkpoint="fine",
            upscale=UpscalePass(scale=2),
        )
    )
    assert list(labels) == [
        *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model"),
        *("Variation seed", "Variation seed strength", "Seed resize from", "Denoising strength"),
        *("Clip skip", "RNG", "Hires sampler", "Hires prompt", "Hires negative prompt"),
        *("Hires upscale", "Hires upscaler", "Emphasis", "Eta", "Refiner", "Refiner switch at"),
        *("Postprocess upscale by", "Postprocess upscaler", "Version"),
    ]


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert text().count("\n") == 1


def test_without_a_prompt_there_is_no_line_for_it() -> None:
    assert text("").startswith("Steps: ")
    assert text("", negative_prompt="fog").startswith("Negative prompt: fog\nSteps: ")


def test_a_prompt_of_several_lines_is_written_unchanged() -> None:
    assert text("a fox\nin the snow").startswith("a fox\nin the snow\nSteps: ")


def test_a_model_without_a_hash_has_no_hash_label() -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    assert "hash" not in generated(request, 1, Models("folder", None, {}, {}))


def test_clip_skip_is_counted_as_in_a1111() -> None:
    """A1111's 1 skips nothing; ours counts the skipped layers."""
    assert "Clip skip" not in settings(text())
    assert settings(text(clip_skip=1))["Clip skip"] == "2"


def test_padded_prompts_have_a1111s_label() -> None:
    request = GenerateRequest(prompt="a fox", width=512, height=512)
    padded = generated(request, 42, replace(DEMO, padded=True))
    assert settings(padded)["Pad conds"] == "True"
    assert read(padded).ignored == {}
    assert "Pad conds" not in settings(text())


def test_img2img_has_its_strength_and_txt2img_has_none() -> None:
    assert settings(text(image=IMAGE, strength=0.4))["Denoising strength"] == "0.4"
    assert "Denoising strength" not in settings(text())


@pytest.mark.parametrize(
    ("inpaint", "labels"),
    [
        ({}, {"Mask blur": "4"}),
        ({"invert": True}, {"Mask mode": "Inpaint not masked"}),
        ({"fill": "latent_noise"}, {"Masked content": "latent noise"}),
        ({"padding": 8}, {}),
        (
            {"only_masked": True, "padding": 8},
            {"Inpaint area": "Only masked", "Masked area padding": "8"},
        ),
    ],
)
def test_inpainting_has_labels_of_what_is_not_a1111s_default(
    inpaint: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    mask = Inpaint(mask_image=ImageRef(key="inputs/mask.png"), **inpaint)
    known = {"Mask blur": "4", "Inpaint mask": "inputs/mask.png", "Init image": "inputs/x.png"}
    written = settings(text(image=IMAGE, strength=0.4, inpaint=mask))
    added = {name: written[name] for name in written if name not in settings(text())}
    assert added == {"Denoising strength": "0.4", **known, **labels}


def test_a_hires_pass_has_the_labels_of_hires_fix() -> None:
    by_scale = HiresPass(scale=1.5, num_inference_steps=12, strength=0.35)
    labels = settings(text(hires=by_scale))
    assert labels["Hires upscale"] == "1.5"
    assert labels["Hires steps"] == "12"
    assert labels["Hires upscaler"] == "Latent"
    assert labels["Denoising strength"] == "0.35"
    by_size = settings(text(hires=HiresPass(width=1024, upscaler="lanczos")))
    assert by_size["Hires resize"] == "1024x0"
    assert "Hires upscale" not in by_size
    assert by_size["Hires upscaler"] == "Lanczos"


@pytest.mark.parametrize(
    ("mode", "label"),
    [
        ("latent_bicubic_antialiased", "Latent (bicubic antialiased)"),
        ("latent_nearest_exact", "Latent (nearest-exact)"),
        ("demo-x4", "demo-x4"),
    ],
)
def test_a_hires_upscaler_has_the_label_of_a1111(mode: str, label: str) -> None:
    hires = HiresPass(scale=2, upscaler=mode)
    assert settings(text(hires=hires))["Hires upscaler"] == label


def test_the_hires_pass_of_img2img_has_its_own_strength() -> None:
    labels = settings(text(image=IMAGE, strength=0.4, hires=HiresPass(scale=2, strength=0.3)))
    assert (labels["Denoising strength"], labels["Hires denoising strength"]) == ("0.4", "0.3")


def test_refiner_and_hires_checkpoints_have_their_hash() -> None:
    request = GenerateRequest(
        prompt="a fox",
        width=64,
        height=64,
        refiner_checkpoint="fine",
        hires=HiresPass(scale=2, checkpoint="folder"),
    )
    labels = settings(generated(request, 1, Models("demo", SHA, {}, {}, {"fine": "f" * 64})))
    assert labels["Refiner"] == "fine [ffffffffff]"
    assert labels["Refiner switch at"] == "0.8"
    assert labels["Hires checkpoint"] == "folder"


@pytest.mark.parametrize(("scheduler", "label"), [("ddim", "Eta DDIM"), ("euler", "Eta")])
def test_eta_has_the_label_of_its_sampler(scheduler: str, label: str) -> None:
    assert settings(text(scheduler=scheduler, eta=0.5))[label] == "0.5"


def test_an_image_has_its_own_variation_seed() -> None:
    request = GenerateRequest(
        prompt="x", width=64, height=64, variation_seed=7, variation_strength=0.1
    )
    assert settings(generated(request, 1, DEMO, 9))["Variation seed"] == "9"
    assert settings(generated(request, 1, DEMO))["Variation seed"] == "7"


def test_the_gpus_random_numbers_are_a1111s_default() -> None:
    assert settings(text())["RNG"] == "CPU"
    assert "RNG" not in settings(text(rng="gpu"))


@pytest.mark.parametrize(
    "target",
    [
        {"scale": 1},
        {"width": 640},
        {"height": 333},
        {"width": 640, "height": 333},
        {"width": 640, "height": 333, "crop": False},
        {"scale": 2, "upscaler": "nearest", "upscaler_2": "demo-x2"},
        {"scale": 2, "upscaler_2": "nearest", "upscaler_2_visibility": 0.25},
        {"scale": 4, "upscaler": "demo-x2", "tile_size": 192, "tile_overlap": 8},
    ],
    ids=str,
)
def test_an_upscale_is_read_back_from_the_text(target: dict[str, object]) -> None:
    upscale = UpscalePass.model_validate(target)
    assert parse(text(upscale=upscale)).request.upscale == upscale


def test_an_exact_size_has_a1111s_labels() -> None:
    labels = settings(text(upscale=UpscalePass(width=640, height=333, upscaler_2="demo-x2")))
    assert "Postprocess upscale by" not in labels
    assert labels["Postprocess upscale to"] == labels["Postprocess crop to"] == "640x333"
    assert labels["Postprocess upscaler 2"] == "demo-x2"


def test_restored_faces_have_a1111s_label_at_its_position() -> None:
    faces = FaceRestore(restorer="codeformer-v0.1.0", visibility=0.5, fidelity=0.2)
    labels = settings(text(face_restore=faces))
    assert labels["Face restoration"] == "codeformer-v0.1.0"
    assert list(labels).index("Face restoration") == list(labels).index("Seed") + 1
    assert labels["Face restoration visibility"] == "0.5"
    assert labels["CodeFormer weight"] == "0.2"
    assert "Face restoration after upscale" not in labels
    last = FaceRestore(restorer="GFPGANv1.4", after_upscale=True)
    plain = settings(text(face_restore=last, upscale=UpscalePass(scale=2)))
    assert plain["Face restoration after upscale"] == "True"
    assert not {"Face restoration visibility", "CodeFormer weight"} & plain.keys()


def test_an_upscaled_image_has_labels_of_its_faces_too() -> None:
    request = UpscaleRequest(
        images=(ImageRef(key="x"),), scale=2, face_restore=FaceRestore(restorer="GFPGANv1.4")
    )
    assert "Face restoration: GFPGANv1.4" in upscaled(request, None)
    assert parse(upscaled(request, "a fox\nSteps: 3, Sampler: Euler")).request.face_restore == (
        request.face_restore
    )


def test_an_upscale_has_the_labels_of_postprocessing() -> None:
    labels = settings(text(upscale=UpscalePass(upscaler="demo-x2", scale=2.5)))
    assert labels["Postprocess upscale by"] == "2.5"
    assert labels["Postprocess upscaler"] == "demo-x2"
    assert "Postprocess tile size" not in labels
    tiled = UpscalePass(upscaler="demo-x2", scale=2, tile_size=64)
    assert settings(text(upscale=tiled))["Postprocess tile size"] == "64"


@pytest.mark.parametrize("name", ['odd, "name"', "line\nbreak", "naïve狐,", '"quoted"', "{x}"])
def test_a_value_with_a_comma_or_a_line_break_is_quoted(name: str) -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    assert settings(generated(request, 1, Models(name, SHA, {}, {})))["Model"] == name


def test_a_number_is_written_to_its_last_digit() -> None:
    """Six digits once changed the image of 7.1234567."""
    assert settings(text(guidance_scale=7.1234567))["CFG scale"] == "7.1234567"


def test_adapters_are_written_as_tags_and_hashes() -> None:
    """With one LoRA as a tag of the prompt and two as fields, the tag is not written twice."""
    request = GenerateRequest(
        prompt="a fox <lora:inkwell:0.5>",
        width=64,
        height=64,
        loras=(
            LoRA(name="fog", scale=0.8, text_encoder_scale=0),
            LoRA(name="inkwell", scale=0.5),
            LoRA(name="ink"),
        ),
    )
    models = Models("demo", SHA, {"ink": SHA, "fog": "f" * 64}, {"frost": "e" * 64})
    written = generated(request, 1, models)
    assert written.startswith("a fox <lora:inkwell:0.5> <lora:fog:0:0.8> <lora:ink:1:1>\n")
    labels = settings(written)
    assert labels["Lora hashes"] == "ink: 0123456789ab, fog: ffffffffffff"
    assert labels["TI hashes"] == "frost: eeeeeeeeeeee"


def test_a_hires_pass_has_its_own_loras_as_tags_in_its_prompt() -> None:
    fields: dict[str, Any] = {"loras": (LoRA(name="ink"),)}
    own = HiresPass(scale=2, loras=(LoRA(name="fog", scale=0.5),))
    assert settings(text(**fields, hires=own))["Hires prompt"] == "a fox <lora:fog:0.5:0.5>"
    inherited = HiresPass(scale=2, prompt="an owl")
    assert settings(text(**fields, hires=inherited))["Hires prompt"] == "an owl <lora:ink:1:1>"
    assert "Hires prompt" not in settings(text(**fields, hires=HiresPass(scale=2)))


def test_embeddings_under_custom_tokens_are_written() -> None:
    inversions = (TextualInversion(name="frost", token="icy, cold", scale=0.5),)
    written = settings(text(textual_inversions=inversions))["Textual inversions"]
    assert json.loads(written) == [{"name": "frost", "token": "icy, cold", "scale": 0.5}]


def test_an_upscaled_image_has_the_text_of_its_input() -> None:
    request = UpscaleRequest(images=(ImageRef(key="x.png"),), upscaler="demo-x4", scale=4)
    steps = "Postprocess upscale by: 4, Postprocess upscaler: demo-x4"
    assert upscaled(request, None) == steps
    assert upscaled(request, "") == steps
    assert upscaled(request, text()) == f"{text()}, {steps}"
    assert upscaled(request, "a comment") == f"a comment\n{steps}"
