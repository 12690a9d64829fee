"""Requests: valid values are accepted and nothing else is."""

import json
from math import inf, nan
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from imagefleet_shared.errors import InvalidRequest, UnknownScheduler
from imagefleet_shared.field_types import LATENT_MODES, JobKind
from imagefleet_shared.request_parts import HiresPass, ImageRef, Inpaint, UpscalePass
from imagefleet_shared.requests import (
    GenerateRequest,
    UpscaleRequest,
    parse_request,
)
from imagefleet_shared.samplers import OWN_TIMESTEPS, SchedulerName, SigmaSchedule

IMAGE = ImageRef(key="inputs/x.png")
MODELS = (ImageRef, HiresPass, Inpaint, UpscalePass, GenerateRequest, UpscaleRequest)


def generate(**fields: object) -> GenerateRequest:
    values: dict[str, Any] = {"prompt": "a fox", **fields}
    return GenerateRequest(**values)


def test_a_prompt_alone_is_enough() -> None:
    request = generate()
    assert (request.width, request.height, request.checkpoint, request.seed) == (None,) * 4
    assert (request.num_inference_steps, request.guidance_scale) == (25, 7)


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("generate", generate(seed=2**32 - 16, width=64, height=8192, num_images=16)),
        ("generate", generate(image=IMAGE, strength=1, hires=HiresPass(scale=8))),
        ("generate", generate(prompt="狐 \N{FOX FACE} \\ \n", upscale=UpscalePass(scale=2))),
        ("upscale", UpscaleRequest(images=(IMAGE,), upscaler="demo-x2", scale=1.01)),
    ],
)
def test_a_request_is_read_back_from_its_record(
    kind: JobKind, request_: GenerateRequest | UpscaleRequest
) -> None:
    assert parse_request(kind, request_.model_dump_json()) == request_


@pytest.mark.parametrize("model", MODELS)
def test_every_field_has_a_description(model: type[GenerateRequest]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("field", "least", "most", "step"),
    [
        ("num_inference_steps", 1, 150, 1),
        ("guidance_scale", 1, 30, 0.01),
        ("clip_skip", 1, 11, 1),
        ("num_images", 1, 16, 1),
        ("seed", 0, 2**32 - 1, 1),
    ],
)
def test_numbers_are_accepted_up_to_their_limits_and_refused_beyond(
    field: str, least: float, most: float, step: float
) -> None:
    for value in (least, most):
        assert getattr(generate(**{field: value}), field) == value
    for value in (least - step, most + step):
        with pytest.raises(InvalidRequest, match=rf"GenerateRequest: {field}: .*given {value}"):
            generate(**{field: value})


@pytest.mark.parametrize("side", [56, 65, 100, 8200, 10_000, 64.5, "wide", True])
def test_sides_are_multiples_of_8_from_64_to_8192(side: object) -> None:
    with pytest.raises(InvalidRequest, match="width"):
        generate(width=side, height=64)


@pytest.mark.parametrize("number", [nan, inf, -inf])
@pytest.mark.parametrize("field", ["guidance_scale", "strength"])
def test_nan_and_infinity_are_refused(field: str, number: float) -> None:
    with pytest.raises(InvalidRequest, match=field):
        generate(**{field: number, "image": IMAGE})
    text = json.dumps({"prompt": "x", field: number})
    with pytest.raises(InvalidRequest):
        parse_request("generate", text)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "../fox", "/fox", "./fox", "~fox", ".fox", "a/b", "a\\b", "C:fox", "fox\0"),
        "f" * 256,
    ],
)
def test_what_could_be_a_path_is_not_a_model_name(name: str) -> None:
    for make in (
        lambda: generate(checkpoint=name),
        lambda: HiresPass(scale=2, upscaler=name),
        lambda: UpscalePass(scale=2, upscaler=name),
    ):
        with pytest.raises(InvalidRequest, match="is not a model name"):
            make()


@pytest.mark.parametrize("name", ["fox", "fox v1.5 (pruned)", "狐-β", "a..b", "f" * 255])
def test_other_model_names_are_accepted(name: str) -> None:
    assert generate(checkpoint=name).checkpoint == name


@pytest.mark.parametrize("name", ["Eular", "", None, 3, "pndm"])
def test_an_unknown_scheduler_has_its_own_error(name: object) -> None:
    with pytest.raises(UnknownScheduler) as refused:
        generate(scheduler=name)
    assert refused.value.args == (str(name), list(get_args(SchedulerName)))


@pytest.mark.parametrize("sigmas", get_args(SigmaSchedule))
@pytest.mark.parametrize("scheduler", get_args(SchedulerName))
def test_only_some_schedulers_accept_a_sigma_schedule(
    scheduler: SchedulerName, sigmas: SigmaSchedule
) -> None:
    if sigmas != "automatic" and scheduler in OWN_TIMESTEPS:
        with pytest.raises(InvalidRequest, match=f"'{scheduler}'.*'{sigmas}'"):
            generate(scheduler=scheduler, sigma_schedule=sigmas)
    else:
        generate(scheduler=scheduler, sigma_schedule=sigmas)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scale": 2, "width": 128, "height": 128},
        {"scale": 2, "width": 128},
    ],
    ids=str,
)
def test_hires_and_upscale_have_either_a_scale_or_a_size(fields: dict[str, Any]) -> None:
    for kind in (HiresPass, UpscalePass):
        with pytest.raises(InvalidRequest, match="either scale, or width, height or both; given"):
            kind(**fields)


@pytest.mark.parametrize("scale", [0.99, 0.5, 8.1, -2])
def test_upscaling_is_by_a_factor_from_1_to_8(scale: float) -> None:
    for make in (
        lambda: HiresPass(scale=scale),
        lambda: UpscalePass(scale=scale),
        lambda: UpscaleRequest(images=(IMAGE,), scale=scale),
    ):
        with pytest.raises(InvalidRequest, match=f"scale: .*given {scale}"):
            make()


def test_tiles_overlap_by_less_than_half() -> None:
    UpscalePass(scale=2, upscaler="swinir", tile_size=64, tile_overlap=31)
    with pytest.raises(InvalidRequest, match="less than half of tile_size 64, given 32"):
        UpscalePass(scale=2, tile_size=64, tile_overlap=32)
    with pytest.raises(InvalidRequest, match=r"tile_overlap: .*equal to 128, given 129"):
        UpscalePass(scale=2, tile_overlap=129)


@pytest.mark.parametrize("mode", LATENT_MODES)
def test_latent_modes_are_for_hires_only(mode: str) -> None:
    allowed = "allowed are 'lanczos', 'nearest' or a model"
    with pytest.raises(InvalidRequest, match=f"upscaler '{mode}' is for hires only; {allowed}"):
        UpscalePass(scale=2, upscaler=mode)
    with pytest.raises(InvalidRequest, match=f"upscaler_2 '{mode}' is for hires only"):
        UpscalePass(scale=2, upscaler_2=mode)


def test_a_field_that_depends_on_another_is_refused_without_it() -> None:
    with pytest.raises(InvalidRequest, match=r"upscaler_2_visibility 0\.3 needs an upscaler_2"):
        UpscalePass(scale=2, upscaler_2_visibility=0.3)
    for target in ({"scale": 2}, {"width": 9}, {"height": 9}):
        with pytest.raises(InvalidRequest, match="crop=False is for a target with both"):
            UpscalePass.model_validate({**target, "crop": False})
    UpscalePass(width=9, height=9, crop=False)


def test_faces_are_not_restored_after_an_upscale_of_an_inpainted_image() -> None:
    fields = {"image": IMAGE, "inpaint": {"mask_image": IMAGE}, "upscale": {"scale": 2}}
    generate(**fields, face_restore={"restorer": "gfpgan"})
    with pytest.raises(InvalidRequest, match=r"after_upscale True would redraw .* only False is"):
        generate(**fields, face_restore={"restorer": "gfpgan", "after_upscale": True})


@pytest.mark.parametrize("upscalers", [{}, {"upscaler": "swinir", "upscaler_2": "swinir"}])
def test_an_upscaler_is_not_blended_with_itself(upscalers: dict[str, str]) -> None:
    """It was run twice, and progress passed 100 %."""
    fields = {"scale": 2, "upscaler_2": "lanczos", **upscalers}
    name = fields["upscaler_2"]
    with pytest.raises(InvalidRequest, match=f"upscaler_2 is '{name}', as upscaler"):
        UpscalePass.model_validate(fields)
    UpscalePass.model_validate({**fields, "upscaler": "other"})


@pytest.mark.parametrize("tiles", [{"tile_size": 64}, {"tile_overlap": 8}])
def test_tiles_are_for_models(tiles: dict[str, int]) -> None:
    for upscalers in ({}, {"upscaler": "nearest"}, {"upscaler_2": "nearest"}):
        with pytest.raises(InvalidRequest, match=r"tile_size .* are for models; upscaler '\w+' is"):
            UpscalePass.model_validate({"scale": 2, **tiles, **upscalers})
    UpscalePass.model_validate({"scale": 2, **tiles, "upscaler_2": "swinir"})


def test_every_image_has_a_seed_that_can_be_requested() -> None:
    """The second one's was 4294967296, which no request accepts."""
    last = 2**32 - 1
    generate(seed=last - 1, num_images=2)
    with pytest.raises(InvalidRequest, match="seed of the last of 2 pictures would be 4294967296"):
        generate(seed=last, num_images=2)
    varied = {"variation_strength": 0.1, "num_images": 2}
    generate(seed=last, variation_seed=last - 1, **varied)
    with pytest.raises(InvalidRequest, match="variation_seed of the last of 2 pictures"):
        generate(variation_seed=last, **varied)


def test_a_variation_seed_needs_a_strength() -> None:
    with pytest.raises(InvalidRequest, match="variation_seed 0 needs a variation_strength above 0"):
        generate(variation_seed=0)
    generate(variation_strength=0.1)


def test_a_switch_needs_a_refiner() -> None:
    with pytest.raises(InvalidRequest, match=r"refiner_switch_at 0\.5 needs a refiner_checkpoint"):
        generate(refiner_switch_at=0.5)
    generate(refiner_switch_at=0.5, refiner_checkpoint="xl-refiner")


def test_faces_are_restored_after_an_upscale_only_if_there_is_one() -> None:
    faces = {"restorer": "gfpgan", "after_upscale": True}
    with pytest.raises(InvalidRequest, match="after_upscale True needs an upscale"):
        generate(face_restore=faces)
    generate(face_restore=faces, upscale={"scale": 2})
    fields = {"images": [IMAGE], "scale": 1, "face_restore": faces}
    with pytest.raises(InvalidRequest, match="scale 1 by 'lanczos' is none"):
        UpscaleRequest.model_validate(fields)
    for upscale in ({"scale": 2}, {"upscaler": "swinir"}):
        UpscaleRequest.model_validate({**fields, **upscale})


def test_an_upscale_request_has_1_to_64_images() -> None:
    assert len(UpscaleRequest(images=(IMAGE,) * 64, scale=2).images) == 64
    for count in (0, 65):
        with pytest.raises(InvalidRequest, match="images"):
            UpscaleRequest(images=(IMAGE,) * count, scale=2)


@pytest.mark.parametrize("tile_size", [8, 20, 2056])
def test_tile_sizes_are_on_the_window_grid(tile_size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"tile_size: .*given {tile_size}"):
        UpscalePass(scale=2, tile_size=tile_size)


def test_strength_needs_an_image() -> None:
    with pytest.raises(InvalidRequest, match=r"strength 0\.5 is for img2img"):
        generate(strength=0.5)


def test_resize_modes_and_masks_need_an_image() -> None:
    with pytest.raises(InvalidRequest, match="resize_mode 'latent' is for img2img"):
        generate(resize_mode="latent")
    with pytest.raises(InvalidRequest, match=r"inpaint .*inputs/x\.png.* is for img2img"):
        generate(inpaint=Inpaint(mask_image=IMAGE))


@pytest.mark.parametrize("model", MODELS)
def test_unknown_fields_are_refused(model: type[GenerateRequest]) -> None:
    with pytest.raises(
        InvalidRequest, match="no_such_field: Extra inputs are not permitted, given 1"
    ):
        model.model_validate({"no_such_field": 1})


def test_several_errors_are_reported_at_once() -> None:
    with pytest.raises(InvalidRequest, match=r"width: .*; num_images: "):
        generate(width=1, height=64, num_images=17)


def test_an_error_in_a_part_is_reported_with_its_field() -> None:
    text = json.dumps({"prompt": "x", "hires": {"scale": 99}})
    with pytest.raises(InvalidRequest, match=r"scale: .*given 99"):
        parse_request("generate", text)


def test_requests_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        generate().prompt = "a wolf"


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"x"', "{", '{"prompt": 1}'])
def test_a_record_that_is_not_a_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_request("generate", text)
    with pytest.raises(InvalidRequest):
        parse_request("upscale", text)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/x", "a/../b", "..", "a\0", "./a", "a/./b", ".", "a//b", "a/"),
        *("k" * 256, "a/" + "é" * 128, "k/" * 512 + "k", "é/" * 342 + "k", "\ud800"),
    ],
)
def test_a_key_that_a_store_might_reject_is_refused(key: str) -> None:
    """Workers took the store's rejection for an outage, and waited for its end."""
    with pytest.raises(InvalidRequest, match="key"):
        ImageRef(key=key)


@pytest.mark.parametrize(
    "key", ["a", ".a/..b/...", "a b/\t狐", "k" * 255, "é" * 127 + "k", "k/" * 511 + "kk"]
)
def test_a_key_that_every_store_accepts_is_accepted(key: str) -> None:
    assert ImageRef(key=key).key == key
