"""The `parameters` text, as A1111 and its readers expect it."""

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
    wanted: dict[str, Any] = {"prompt": prompt, "width": 512, "height": 768, **fields}
    return generated(GenerateRequest(**wanted), 42, DEMO)


def settings(written: str) -> dict[str, str]:
    """The last line as A1111 reads it: by its own pattern."""
    line = written.split("\n")[-1]
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line)
    return {key: json.loads(value) if value[0] == '"' else value for key, value in pairs}


def test_the_three_parts_stand_on_lines_of_their_own() -> None:
    assert text(negative_prompt="fog") == (
        "a fox\nNegative prompt: fog\nSteps: 25, Sampler: Euler, Schedule type: Automatic, "
        "CFG scale: 7, Seed: 42, Size: 512x768, Model hash: 0123456789, Model: demo, RNG: CPU, "
        "Version: Imagefleet 0.1.0"
    )


def test_everything_stands_in_the_order_of_a1111() -> None:
    told = settings(
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
    assert list(told) == [
        *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model"),
        *("Variation seed", "Variation seed strength", "Seed resize from", "Denoising strength"),
        *("Clip skip", "RNG", "Hires sampler", "Hires prompt", "Hires negative prompt"),
        *("Hires upscale", "Hires upscaler", "Emphasis", "Eta", "Refiner", "Refiner switch at"),
        *("Postprocess upscale by", "Postprocess upscaler", "Version"),
    ]


def test_no_negative_prompt_makes_no_line() -> None:
    assert text().count("\n") == 1


def test_no_prompt_makes_no_line() -> None:
    assert text("").startswith("Steps: ")
    assert text("", negative_prompt="fog").startswith("Negative prompt: fog\nSteps: ")


def test_a_prompt_of_several_lines_stays_so() -> None:
    assert text("a fox\nin the snow").startswith("a fox\nin the snow\nSteps: ")


def test_a_model_without_one_hash_shows_none() -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    assert "hash" not in generated(request, 1, Models("folder", None, {}, {}))


def test_clip_skip_is_counted_as_in_a1111() -> None:
    """A1111's 1 leaves nothing out; ours counts the layers left out."""
    assert "Clip skip" not in settings(text())
    assert settings(text(clip_skip=1))["Clip skip"] == "2"


def test_that_texts_were_filled_up_is_told_as_a1111_tells_it() -> None:
    request = GenerateRequest(prompt="a fox", width=512, height=512)
    padded = generated(request, 42, replace(DEMO, padded=True))
    assert settings(padded)["Pad conds"] == "True"
    assert read(padded).ignored == {}
    assert "Pad conds" not in settings(text())


def test_img2img_tells_its_strength_and_txt2img_does_not() -> None:
    assert settings(text(image=IMAGE, strength=0.4))["Denoising strength"] == "0.4"
    assert "Denoising strength" not in settings(text())


@pytest.mark.parametrize(
    ("inpaint", "told"),
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
def test_inpainting_tells_what_is_not_a1111s_default(
    inpaint: Mapping[str, Any], told: Mapping[str, str]
) -> None:
    mask = Inpaint(mask_image=ImageRef(key="inputs/mask.png"), **inpaint)
    known = {"Mask blur": "4", "Inpaint mask": "inputs/mask.png", "Init image": "inputs/x.png"}
    written = settings(text(image=IMAGE, strength=0.4, inpaint=mask))
    labels = {name: written[name] for name in written if name not in settings(text())}
    assert labels == {"Denoising strength": "0.4", **known, **told}


def test_a_hires_pass_is_told_as_hires_fix() -> None:
    by_scale = HiresPass(scale=1.5, num_inference_steps=12, strength=0.35)
    told = settings(text(hires=by_scale))
    assert told["Hires upscale"] == "1.5"
    assert told["Hires steps"] == "12"
    assert told["Hires upscaler"] == "Latent"
    assert told["Denoising strength"] == "0.35"
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


def test_the_hires_pass_of_img2img_has_a_strength_of_its_own() -> None:
    told = settings(text(image=IMAGE, strength=0.4, hires=HiresPass(scale=2, strength=0.3)))
    assert (told["Denoising strength"], told["Hires denoising strength"]) == ("0.4", "0.3")


def test_further_checkpoints_are_told_with_their_hash() -> None:
    request = GenerateRequest(
        prompt="a fox",
        width=64,
        height=64,
        refiner_checkpoint="fine",
        hires=HiresPass(scale=2, checkpoint="folder"),
    )
    told = settings(generated(request, 1, Models("demo", SHA, {}, {}, {"fine": "f" * 64})))
    assert told["Refiner"] == "fine [ffffffffff]"
    assert told["Refiner switch at"] == "0.8"
    assert told["Hires checkpoint"] == "folder"


@pytest.mark.parametrize(("scheduler", "label"), [("ddim", "Eta DDIM"), ("euler", "Eta")])
def test_eta_has_the_label_of_its_sampler(scheduler: str, label: str) -> None:
    assert settings(text(scheduler=scheduler, eta=0.5))[label] == "0.5"


def test_a_picture_tells_its_own_variation_seed() -> None:
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
def test_an_upscale_comes_back_from_the_text(target: dict[str, object]) -> None:
    upscale = UpscalePass.model_validate(target)
    assert parse(text(upscale=upscale)).request.upscale == upscale


def test_an_exact_size_is_told_in_a1111s_words() -> None:
    told = settings(text(upscale=UpscalePass(width=640, height=333, upscaler_2="demo-x2")))
    assert "Postprocess upscale by" not in told
    assert told["Postprocess upscale to"] == told["Postprocess crop to"] == "640x333"
    assert told["Postprocess upscaler 2"] == "demo-x2"


def test_restored_faces_are_told_where_a1111_tells_them() -> None:
    faces = FaceRestore(restorer="codeformer-v0.1.0", visibility=0.5, fidelity=0.2)
    told = settings(text(face_restore=faces))
    assert told["Face restoration"] == "codeformer-v0.1.0"
    assert list(told).index("Face restoration") == list(told).index("Seed") + 1
    assert told["Face restoration visibility"] == "0.5"
    assert told["CodeFormer weight"] == "0.2"
    assert "Face restoration after upscale" not in told
    last = FaceRestore(restorer="GFPGANv1.4", after_upscale=True)
    plain = settings(text(face_restore=last, upscale=UpscalePass(scale=2)))
    assert plain["Face restoration after upscale"] == "True"
    assert not {"Face restoration visibility", "CodeFormer weight"} & plain.keys()


def test_an_enlarged_picture_tells_of_its_faces_too() -> None:
    request = UpscaleRequest(
        images=(ImageRef(key="x"),), scale=2, face_restore=FaceRestore(restorer="GFPGANv1.4")
    )
    assert "Face restoration: GFPGANv1.4" in upscaled(request, None)
    assert parse(upscaled(request, "a fox\nSteps: 3, Sampler: Euler")).request.face_restore == (
        request.face_restore
    )


def test_an_upscale_is_told_as_postprocessing() -> None:
    told = settings(text(upscale=UpscalePass(upscaler="demo-x2", scale=2.5)))
    assert told["Postprocess upscale by"] == "2.5"
    assert told["Postprocess upscaler"] == "demo-x2"
    assert "Postprocess tile size" not in told
    tiled = UpscalePass(upscaler="demo-x2", scale=2, tile_size=64)
    assert settings(text(upscale=tiled))["Postprocess tile size"] == "64"


@pytest.mark.parametrize("name", ['odd, "name"', "line\nbreak", "naïve狐,", '"quoted"', "{x}"])
def test_a_value_with_a_comma_or_a_line_break_is_quoted(name: str) -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    assert settings(generated(request, 1, Models(name, SHA, {}, {})))["Model"] == name


def test_a_number_is_told_to_its_last_digit() -> None:
    """Six digits once made another picture of 7.1234567."""
    assert settings(text(guidance_scale=7.1234567))["CFG scale"] == "7.1234567"


def test_adapters_are_told_by_tag_and_hash() -> None:
    """Given one LoRA as a tag of the prompt and two as fields; the tag is not written twice."""
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
    told = settings(written)
    assert told["Lora hashes"] == "ink: 0123456789ab, fog: ffffffffffff"
    assert told["TI hashes"] == "frost: eeeeeeeeeeee"


def test_a_hires_pass_with_loras_of_its_own_names_them_in_its_prompt() -> None:
    fields: dict[str, Any] = {"loras": (LoRA(name="ink"),)}
    own = HiresPass(scale=2, loras=(LoRA(name="fog", scale=0.5),))
    assert settings(text(**fields, hires=own))["Hires prompt"] == "a fox <lora:fog:0.5:0.5>"
    kept = HiresPass(scale=2, prompt="an owl")
    assert settings(text(**fields, hires=kept))["Hires prompt"] == "an owl <lora:ink:1:1>"
    assert "Hires prompt" not in settings(text(**fields, hires=HiresPass(scale=2)))


def test_embeddings_under_words_of_their_own_are_told() -> None:
    asked = (TextualInversion(name="frost", token="icy, cold", scale=0.5),)
    told = settings(text(textual_inversions=asked))["Textual inversions"]
    assert json.loads(told) == [{"name": "frost", "token": "icy, cold", "scale": 0.5}]


def test_an_enlarged_picture_keeps_what_was_told_of_it() -> None:
    enlarge = UpscaleRequest(images=(ImageRef(key="x.png"),), upscaler="demo-x4", scale=4)
    steps = "Postprocess upscale by: 4, Postprocess upscaler: demo-x4"
    assert upscaled(enlarge, None) == steps
    assert upscaled(enlarge, "") == steps
    assert upscaled(enlarge, text()) == f"{text()}, {steps}"
    assert upscaled(enlarge, "a comment") == f"a comment\n{steps}"
