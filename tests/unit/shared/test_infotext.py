"""The `parameters` text, as A1111 and its readers expect it."""

import json
import re
from typing import Any

import pytest

from imagefleet_shared.infotext import (
    LoraUse,
    Models,
    generated,
    upscaled,
)
from imagefleet_shared.parts import HiresPass, ImageRef, UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest

SHA = "0123456789abcdef" * 4
DEMO = Models("demo", SHA, {}, {})


def text(prompt: str = "a fox", **fields: object) -> str:
    wanted: dict[str, Any] = {"prompt": prompt, "width": 512, "height": 768, **fields}
    request = GenerateRequest(**wanted)
    return generated(request, 42, DEMO)


def settings(written: str) -> dict[str, str]:
    """The last line as A1111 reads it: by its own pattern."""
    line = written.split("\n")[-1]
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line)
    return {key: json.loads(value) if value[0] == '"' else value for key, value in pairs}


def test_the_three_parts_stand_on_lines_of_their_own() -> None:
    assert text(negative_prompt="fog") == (
        "a fox\nNegative prompt: fog\nSteps: 25, Sampler: Euler, Schedule type: Automatic, "
        "CFG scale: 7, Seed: 42, Size: 512x768, Model hash: 0123456789, Model: demo, "
        "Version: Imagefleet 0.1.0"
    )


def test_no_negative_prompt_makes_no_line() -> None:
    assert text().count("\n") == 1


def test_a_prompt_of_several_lines_stays_so() -> None:
    assert text("a fox\nin the snow").startswith("a fox\nin the snow\nSteps: ")


def test_a_model_without_one_hash_shows_none() -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    assert "hash" not in generated(request, 1, Models("folder", None, {}, {}))


def test_clip_skip_is_counted_as_in_a1111() -> None:
    """A1111's 1 leaves nothing out; ours counts the layers left out."""
    assert "Clip skip" not in settings(text())
    assert settings(text(clip_skip=1))["Clip skip"] == "2"


def test_img2img_tells_its_strength_and_txt2img_does_not() -> None:
    image = ImageRef(key="x.png")
    assert settings(text(image=image, strength=0.4))["Denoising strength"] == "0.4"
    assert "Denoising strength" not in settings(text())


def test_a_hires_pass_is_told_as_hires_fix() -> None:
    by_scale = HiresPass(scale=1.5, num_inference_steps=12, strength=0.35)
    told = settings(text(hires=by_scale))
    assert told["Hires upscale"] == "1.5"
    assert told["Hires steps"] == "12"
    assert told["Hires upscaler"] == "Latent"
    assert told["Denoising strength"] == "0.35"
    by_size = settings(text(hires=HiresPass(width=1024, height=1536, upscaler="lanczos")))
    assert by_size["Hires resize"] == "1024x1536"
    assert "Hires upscale" not in by_size
    assert by_size["Hires upscaler"] == "Lanczos"


def test_an_upscale_is_told_as_postprocessing() -> None:
    told = settings(text(upscale=UpscalePass(upscaler="demo-x2", scale=2.5)))
    assert told["Postprocess upscale by"] == "2.5"
    assert told["Postprocess upscaler"] == "demo-x2"


@pytest.mark.parametrize("name", ['odd, "name"', "line\nbreak", "naïve狐,"])
def test_a_value_with_a_comma_or_a_line_break_is_quoted(name: str) -> None:
    request = GenerateRequest(prompt="x", width=64, height=64)
    assert settings(generated(request, 1, Models(name, SHA, {}, {})))["Model"] == name


def test_adapters_are_told_by_tag_and_hash() -> None:
    """Given one LoRA as a tag of the prompt and one as a field; the tag is not written twice."""
    request = GenerateRequest(prompt="a fox <lora:ink:0.5>", width=64, height=64)
    loras = {"ink": LoraUse(0.5, 0.5, SHA), "fog": LoraUse(0.8, 0, "f" * 64)}
    written = generated(request, 1, Models("demo", SHA, loras, {"frost": "e" * 64}))
    assert written.startswith("a fox <lora:ink:0.5> <lora:fog:0:0.8>\n")
    told = settings(written)
    assert told["Lora hashes"] == "ink: 0123456789ab, fog: ffffffffffff"
    assert told["TI hashes"] == "frost: eeeeeeeeeeee"


def test_an_enlarged_picture_keeps_what_was_told_of_it() -> None:
    enlarge = UpscaleRequest(image=ImageRef(key="x.png"), upscaler="demo-x4", scale=4)
    steps = "Postprocess upscale by: 4, Postprocess upscaler: demo-x4"
    assert upscaled(enlarge, None) == steps
    assert upscaled(enlarge, "") == steps
    assert upscaled(enlarge, text()) == f"{text()}, {steps}"
    assert upscaled(enlarge, "a comment") == f"a comment\n{steps}"
