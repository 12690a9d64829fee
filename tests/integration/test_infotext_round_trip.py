"""Images generated again from their infotext by a real fleet; and infotext read by others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import Generators

from imagefleet_producer import GenerateRequest, HiresPass, LoRA, TextualInversion, UpscalePass
from imagefleet_producer.cli.cli_options import CliOptions, build_request
from imagefleet_shared.field_types import ImageFormat
from imagefleet_shared.image_files import read_parameters
from imagefleet_shared.infotext import parse
from tests.fleet import TestFleet

TIMEOUT_S = 60


def generate(fleet: TestFleet, request: GenerateRequest) -> bytes:
    [content] = fleet.client.generate(request).files(TIMEOUT_S)
    return content


def pixels(content: bytes, folder: Path) -> Any:  # noqa: ANN401 — numpy's arrays of any type
    file = folder / "pixels"
    file.write_bytes(content)
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a (red:1.3) fox <lora:demo-one:0.7>, in\nthe snow", "negative_prompt": "fog"},
        {"loras": (LoRA(name="demo-two", scale=-0.5, text_encoder_scale=0.25),)},
        {"guidance_scale": 6.123456789, "clip_skip": 1, "width": 128, "height": 64},
        {"hires": HiresPass(scale=1.5, num_inference_steps=3, strength=0.55)},
        {"hires": HiresPass(width=192, height=128, upscaler="demo-x2", strength=0.5)},
        {"variation_seed": 99, "variation_strength": 0.3},
        {"scheduler": "DPM++ 2M Karras", "upscale": UpscalePass(upscaler="lanczos", scale=1.5)},
        {
            "prompt": "an icy fox",
            "textual_inversions": (TextualInversion(name="demo-token", token="icy", scale=0.5),),
        },
        {"checkpoint": "demo-xl"},
        {"prompt": "many words, " * 40},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_an_image_is_generated_again_from_its_own_text(
    fleet: TestFleet, tmp_path: Path, fields: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"prompt": "a red fox", "num_inference_steps": 4, "seed": 11}
    first = generate(fleet, GenerateRequest.model_validate(plain | fields))
    text = read_parameters(first)
    assert text is not None
    assert ("Pad conds: True" in text) == ("many words" in text)
    parsed = parse(text)
    assert parsed.ignored == {}
    again = generate(fleet, parsed.request)
    assert read_parameters(again) == text
    assert np.array_equal(pixels(first, tmp_path), pixels(again, tmp_path))


def test_an_img2img_image_is_generated_again_too(fleet: TestFleet, tmp_path: Path) -> None:
    photo = Image.linear_gradient("L").convert("RGB").resize((128, 96))
    request = GenerateRequest(
        prompt="a red fox",
        num_inference_steps=4,
        seed=3,
        image=fleet.client.put_image(photo),
        strength=0.6,
    )
    first = generate(fleet, request)
    source = tmp_path / "image.png"
    source.write_bytes(first)
    again, ignored = build_request(CliOptions.from_options({}), source, fleet.client)
    assert ignored == {}
    assert np.array_equal(pixels(first, tmp_path), pixels(generate(fleet, again), tmp_path))


def test_the_second_of_two_images_is_generated_alone(fleet: TestFleet, tmp_path: Path) -> None:
    """A batch differs from an image alone in the lowest bit of few pixels, by float rounding."""
    request = GenerateRequest(prompt="a red fox", num_inference_steps=4, seed=5, num_images=2)
    second = fleet.client.generate(request).files(TIMEOUT_S)[1]
    text = read_parameters(second)
    assert text is not None
    assert "Seed: 6," in text
    again = generate(fleet, parse(text).request)
    difference = pixels(second, tmp_path).astype(int) - pixels(again, tmp_path)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_another_program_reads_our_infotext(
    fleet: TestFleet, tmp_path: Path, file_format: ImageFormat
) -> None:
    """sd-parsers is an independent reader of A1111's images."""
    request = GenerateRequest(
        prompt="a red fox,\nin the snow",
        negative_prompt="fog, rain",
        num_inference_steps=4,
        seed=11,
        scheduler="dpmpp_2m",
        sigma_schedule="karras",
        output_format=file_format,
    )
    file = tmp_path / f"image.{file_format}"
    file.write_bytes(generate(fleet, request))
    read = ParserManager().parse(file)
    assert read is not None
    assert read.generator == Generators.AUTOMATIC1111
    [sampler] = read.samplers
    assert [prompt.value for prompt in sampler.prompts] == [request.prompt]
    assert [prompt.value for prompt in sampler.negative_prompts] == [request.negative_prompt]
    assert sampler.name == "DPM++ 2M"
    assert sampler.model is not None
    assert sampler.model.name == "demo"
    assert sampler.parameters["scheduler"] == "Karras"
    assert (sampler.parameters["seed"], sampler.parameters["steps"]) == ("11", "4")
    assert read.metadata["Size"] == "128x128"
