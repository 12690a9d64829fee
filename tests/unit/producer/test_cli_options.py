"""Building requests from command line options and from images."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image

from imagefleet_producer import (
    BrokerSettings,
    Client,
    FaceRestore,
    GenerateRequest,
    HiresPass,
    Inpaint,
    InvalidRequest,
    StorageSettings,
    UpscalePass,
)
from imagefleet_producer.cli.cli_options import CliOptions, build_request
from imagefleet_shared.image_files import encode_image
from imagefleet_shared.infotext import Models, generated
from localfleet.ports import free_port

GENERATED = GenerateRequest(
    prompt="a fox <lora:ink:0.5>",
    negative_prompt="fog",
    checkpoint="demo",
    width=128,
    height=192,
    seed=7,
    scheduler="dpmpp_2m",
    sigma_schedule="karras",
    hires=HiresPass(scale=1.5, strength=0.4, scheduler="heun", sigma_schedule="beta"),
    upscale=UpscalePass(scale=2, upscaler="demo-x2"),
)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client of a store in a folder, and of a Redis that is never used."""
    broker = BrokerSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with Client(broker, StorageSettings(storage_url=(tmp_path / "store").as_uri())) as client:
        yield client


def generated_file(folder: Path, request: GenerateRequest = GENERATED) -> Path:
    """An image file, as a worker writes it."""
    text = generated(request, request.seed or 0, Models("demo", None, {}, {}))
    file = folder / "image.png"
    file.write_bytes(encode_image(Image.new("RGB", (8, 8)), "png", text))
    return file


def photo(folder: Path, name: str) -> Path:
    file = folder / name
    Image.new("RGB", (64, 64), "teal").save(file)
    return file


def request_from(client: Client, source: Path | None = None, **options: object) -> GenerateRequest:
    return build_request(CliOptions.from_options(options), source, client)[0]


def test_an_image_gives_its_request_again(client: Client, tmp_path: Path) -> None:
    assert (
        request_from(client, generated_file(tmp_path), prompt=None, hires_scale=None) == GENERATED
    )


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"prompt": "an owl"}, {"prompt": "an owl"}),
        ({"width": 256}, {"width": 256}),
        ({"seed": 0}, {"seed": 0}),
        ({"num_images": 3}, {"num_images": 3}),
        ({"hires_scale": 0}, {"hires": None}),
        ({"upscale_scale": 0}, {"upscale": None}),
        ({"sigma_schedule": "beta"}, {"sigma_schedule": "beta"}),
        ({"scheduler": "DDIM"}, {"scheduler": "ddim", "sigma_schedule": "automatic"}),
        ({"scheduler": "Euler Karras"}, {"scheduler": "euler", "sigma_schedule": "karras"}),
        ({"seed_resize_from": "512x640"}, {"seed_resize_from": (512, 640)}),
        ({"upscale_upscaler": "lanczos"}, {"upscale": UpscalePass(scale=2, upscaler="lanczos")}),
    ],
)
def test_options_override_the_image(
    client: Client, tmp_path: Path, options: Mapping[str, object], changed: Mapping[str, object]
) -> None:
    expected = GENERATED.model_copy(update=dict(changed))
    assert request_from(client, generated_file(tmp_path), **options) == expected


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"hires_scale": 2.0}, {"scale": 2}),
        ({"hires_width": 512}, {"scale": None, "width": 512}),
        ({"hires_scheduler": "lms"}, {"scheduler": "lms", "sigma_schedule": None}),
        ({"hires_prompt": "an owl", "hires_checkpoint": "xl"}, {"prompt": "an owl"}),
    ],
)
def test_options_override_the_parts_of_the_request(
    client: Client, tmp_path: Path, options: Mapping[str, object], changed: Mapping[str, object]
) -> None:
    hires = request_from(client, generated_file(tmp_path), **options).hires
    assert hires is not None
    assert hires.model_dump(include=set(changed)) == changed
    assert hires.strength == 0.4


def test_faces_are_restored_by_name_and_switched_off_by_a_visibility_of_0(
    client: Client, tmp_path: Path
) -> None:
    options = {"face_restore_restorer": "GFPGANv1.4", "face_restore_after_upscale": True}
    with_faces = request_from(client, generated_file(tmp_path), **options)
    expected = FaceRestore(restorer="GFPGANv1.4", after_upscale=True)
    assert with_faces.face_restore == expected
    again = request_from(client, generated_file(tmp_path, with_faces), face_restore_visibility=0.5)
    assert again.face_restore == expected.model_copy(update={"visibility": 0.5})
    without = request_from(
        client, generated_file(tmp_path, with_faces), face_restore_visibility=0.0
    )
    assert without.face_restore is None


def test_fields_that_depend_on_a_switched_off_part_are_dropped(
    client: Client, tmp_path: Path
) -> None:
    faces = FaceRestore(restorer="GFPGANv1.4", after_upscale=True)
    varied = {"variation_seed": 5, "variation_strength": 0.1, "face_restore": faces}
    source = generated_file(tmp_path, GENERATED.model_copy(update=varied))
    again = request_from(client, source, variation_strength=0.0, upscale_scale=0.0)
    assert (again.variation_seed, again.upscale) == (None, None)
    assert again.face_restore == FaceRestore(restorer="GFPGANv1.4")
    with pytest.raises(InvalidRequest, match="variation_seed 7 needs"):
        request_from(client, source, variation_strength=0.0, variation_seed=7)


def test_without_an_image_only_the_options_count(client: Client) -> None:
    request = request_from(client, prompt="a fox", hires_scale=2.0, hires_num_inference_steps=3)
    assert request == GenerateRequest(
        prompt="a fox", hires=HiresPass(scale=2, num_inference_steps=3)
    )


def test_an_img2img_image_gives_its_initial_image_and_mask_again(
    client: Client, tmp_path: Path
) -> None:
    first, mask = client.put_image(photo(tmp_path, "a.png")), client.put_image(red := _png("red"))
    img2img = GenerateRequest(
        prompt="a fox",
        checkpoint="demo",
        width=64,
        height=64,
        seed=1,
        image=first,
        strength=0.5,
        inpaint=Inpaint(mask_image=mask, mask_blur=8),
    )
    source = generated_file(tmp_path, img2img)
    assert request_from(client, source) == img2img
    other = photo(tmp_path, "b.png")
    other.write_bytes(red)
    again = request_from(client, source, image=other, inpaint_mask_image=other, inpaint_mask_blur=2)
    assert (again.image, again.inpaint) == (mask, Inpaint(mask_image=mask, mask_blur=2))


def test_img2img_labels_are_ignored_without_an_image(client: Client, tmp_path: Path) -> None:
    text = "a fox\nSteps: 20, Sampler: Euler, Denoising strength: 0.5, Mask blur: 4"
    source = tmp_path / "theirs.webp"
    source.write_bytes(encode_image(Image.new("RGB", (8, 8)), "webp", text))
    request, ignored = build_request(CliOptions.from_options({}), source, client)
    assert request.image is None
    assert ignored == {"Denoising strength": "0.5", "Mask blur": "4"}
    image = photo(tmp_path, "a.png")
    request, ignored = build_request(CliOptions.from_options({"image": image}), source, client)
    assert request.strength == 0.5
    assert ignored == {"Mask blur": "4"}


def test_neither_prompt_nor_image_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="give a prompt, or an image"):
        request_from(client, prompt=None)


def test_an_image_without_a_text_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="carries no text"):
        request_from(client, photo(tmp_path, "plain.png"))


def _png(colour: str) -> bytes:
    return encode_image(Image.new("RGB", (64, 64), colour), "png", None)
