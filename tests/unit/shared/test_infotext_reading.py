"""Reading infotext of A1111 and of Imagefleet into requests."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagefleet_shared.errors import InvalidRequest, UnknownScheduler
from imagefleet_shared.field_types import Emphasis, LatentMode, MaskFill, ResizeMode
from imagefleet_shared.infotext import Models, generated, parse, read, upscaled
from imagefleet_shared.request_parts import (
    FaceRestore,
    HiresPass,
    ImageRef,
    Inpaint,
    TextualInversion,
    UpscalePass,
)
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.samplers import OWN_TIMESTEPS, SchedulerName, SigmaSchedule

IMAGE, MASK = ImageRef(key="inputs/x.png"), ImageRef(key="inputs/mask.png")
LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768"


def ignored(more: str) -> Mapping[str, str]:
    return parse(f"a fox\n{LINE}{more}").ignored


def test_a_text_of_current_a1111() -> None:
    parsed = parse(
        "a fox <lora:ink:0.5>,\nsnow\nNegative prompt: fog,\nrain\n"
        "Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5.5, Seed: 7, "
        "Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, Denoising strength: 0.35, "
        "Clip skip: 2, RNG: CPU, Hires upscale: 1.5, Hires steps: 12, "
        "Hires upscaler: Latent (bicubic), "
        'Lora hashes: "ink: 0123456789ab", Version: v1.10.1'
    )
    assert parsed.ignored == {}
    assert parsed.request == GenerateRequest(
        prompt="a fox <lora:ink:0.5>,\nsnow",
        negative_prompt="fog,\nrain",
        num_inference_steps=30,
        scheduler="dpmpp_2m_sde",
        sigma_schedule="karras",
        guidance_scale=5.5,
        seed=7,
        width=512,
        height=768,
        checkpoint="v1-5-pruned",
        clip_skip=1,
        rng="cpu",
        hires=HiresPass(
            scale=1.5, num_inference_steps=12, upscaler="latent_bicubic", strength=0.35
        ),
    )


def test_a_text_of_an_older_a1111() -> None:
    """Sampler and schedule in one label, hashes not quoted, a seed resize from no size."""
    parsed = parse(
        "a fox\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, "
        "Model hash: 3e16efc8, Seed resize from: -1x-1, ENSD: 31337, "
        'Hashes: {"vae": "1", "model": "2"}, Version: v1.5.2'
    )
    assert (parsed.request.scheduler, parsed.request.sigma_schedule) == ("dpmpp_2m", "karras")
    assert parsed.request.seed_resize_from is None
    assert parsed.request.negative_prompt == ""
    assert parsed.ignored == {"Model hash": "3e16efc8", "ENSD": "31337"}


@pytest.mark.parametrize(
    ("more", "field", "value"),
    [
        (", Clip skip: 1", "clip_skip", None),
        (", Clip skip: 3", "clip_skip", 2),
        (", RNG: NV", "rng", "gpu"),
        ("", "rng", "gpu"),
        (", Emphasis: No norm", "emphasis", "no_norm"),
        (", Eta: 0.5", "eta", 0.5),
        (", Variation seed: 5, Variation seed strength: 0.1", "variation_seed", 5),
        (", Seed resize from: 512x640", "seed_resize_from", (512, 640)),
        (", Refiner: fine [0123456789], Refiner switch at: 0.7", "refiner_checkpoint", "fine"),
        (", Refiner: fine [0123456789], Refiner switch at: 0.7", "refiner_switch_at", 0.7),
        (', Model: "odd, name"', "checkpoint", "odd, name"),
        (", Postprocess upscale by: 3", "upscale", UpscalePass(scale=3)),
        (", Schedule type: Uniform", "sigma_schedule", "normal"),
        (", Face restoration: GFPGAN", "face_restore", FaceRestore(restorer="GFPGAN")),
        (
            ", CodeFormer visibility: 0.4, CodeFormer weight: 0.2, Postprocess upscale by: 3",
            "face_restore",
            FaceRestore(restorer="CodeFormer", visibility=0.4, fidelity=0.2),
        ),
        (
            ", Postprocess upscale to: 9x9, GFPGAN visibility: 0.4",
            "face_restore",
            FaceRestore(restorer="GFPGAN", visibility=0.4, after_upscale=True),
        ),
    ],
)
def test_a_label_is_read_as_a_field(more: str, field: str, value: object) -> None:
    assert getattr(parse(f"a fox\n{LINE}{more}").request, field) == value


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("Hires resize: 1024x0", {"width": 1024}),
        ("Hires upscale: 1", {"width": 512, "height": 768}),
        ("Hires upscale: 2, Hires upscaler: None", {"scale": 2, "upscaler": "lanczos"}),
        ("Hires upscale: 2, Hires upscaler: 4x-Sharp", {"scale": 2, "upscaler": "4x-Sharp"}),
        ("Hires upscale: 2, Hires sampler: Use same sampler", {"scale": 2}),
        (
            "Hires upscale: 2, Hires sampler: DPM++ 2M, Hires schedule type: Karras",
            {"scale": 2, "scheduler": "dpmpp_2m", "sigma_schedule": "karras"},
        ),
        (
            'Hires upscale: 2, Hires prompt: "an owl, <lora:ink:1>", Hires negative prompt: fog',
            {"scale": 2, "prompt": "an owl, <lora:ink:1>", "negative_prompt": "fog"},
        ),
        ("Hires upscale: 2, Hires checkpoint: xl [0123456789]", {"scale": 2, "checkpoint": "xl"}),
    ],
)
def test_a_hires_fix_is_read_as_a_hires_pass(more: str, part: Mapping[str, Any]) -> None:
    request = parse(f"a fox\n{LINE}, Denoising strength: 0.5, {more}").request
    assert request.hires == HiresPass.model_validate({"strength": 0.5, **part})


def test_a_scheduler_with_its_own_noise_levels_ignores_the_schedule_as_in_a1111() -> None:
    line = "Steps: 20, Sampler: DDIM, Schedule type: Karras, Eta DDIM: 0.5"
    parsed = parse(line)
    assert (parsed.request.sigma_schedule, parsed.request.eta) == ("automatic", 0.5)
    assert parsed.ignored == {"Schedule type": "Karras"}


def test_the_hires_pass_may_have_such_a_scheduler_after_another() -> None:
    line = "Steps: 20, Sampler: Euler, Schedule type: Karras, Hires upscale: 2, Hires sampler: DDIM"
    hires = parse(line).request.hires
    assert hires is not None
    assert (hires.scheduler, hires.sigma_schedule) == ("ddim", "automatic")


def test_an_upscaler_blended_with_itself_is_that_upscaler() -> None:
    labels = "Postprocess upscale by: 2, Postprocess upscaler: x, Postprocess upscaler 2: x"
    parsed = parse(f"a fox\n{LINE}, {labels}, Postprocess upscaler 2 visibility: 0.3")
    assert parsed.request.upscale == UpscalePass(scale=2, upscaler="x")
    assert parsed.ignored == {}


def test_labels_that_no_field_can_represent_are_returned_as_ignored() -> None:
    more = ', ControlNet 0: "Module: canny, Weight: 1", Tiling: True, Downcast'
    assert ignored(more) == {
        "ControlNet 0": "Module: canny, Weight: 1",
        "Tiling": "True",
        "Downcast": "",
    }
    assert ignored("\nTemplate: a {fox|owl}") == {"Template": "a {fox|owl}"}


def test_of_an_image_upscaled_twice_the_second_upscale_is_ignored() -> None:
    again = UpscaleRequest(images=(IMAGE,), scale=3)
    parsed = parse(upscaled(again, f"a fox\n{LINE}, Postprocess upscale by: 2"))
    assert parsed.request.upscale == UpscalePass(scale=2)
    assert parsed.ignored == {"Postprocess upscale by": "3"}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (LINE.replace("Euler a", "Restart 2"), UnknownScheduler, ["Restart 2", "euler_ancestral"]),
        (f"{LINE}, Schedule type: Turbo", InvalidRequest, ["Turbo", "karras"]),
        (f"{LINE}, Emphasis: Strong", InvalidRequest, ["Strong", "No norm"]),
        (f"{LINE}, RNG: TPU", InvalidRequest, ["TPU", "CPU, GPU"]),
        (f"{LINE}, Clip skip: x", InvalidRequest, ["Clip skip", "'x'"]),
        (LINE.replace("20", "900"), InvalidRequest, ["num_inference_steps", "900"]),
        (LINE.replace("512x768", "500x768"), InvalidRequest, ["width", "500"]),
        (f"{LINE}, Textual inversions: [", InvalidRequest, ["JSON"]),
        ("a fox", InvalidRequest, ["Steps:"]),
        ("", InvalidRequest, ["Steps:"]),
        ("Postprocess upscale by: 2", InvalidRequest, ["Steps:"]),
    ],
)
def test_an_invalid_text_is_refused(
    text: str, error: type[InvalidRequest], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


IMG2IMG = ", Denoising strength: 0.6, Mask blur: 8, Mask mode: Inpaint not masked"


def test_img2img_labels_are_ignored_without_the_images() -> None:
    alone = parse(f"a fox\n{LINE}{IMG2IMG}")
    assert alone.request == parse(f"a fox\n{LINE}").request
    assert set(alone.ignored) == {"Denoising strength", "Mask blur", "Mask mode"}
    img2img = parse(f"a fox\n{LINE}{IMG2IMG}", IMAGE)
    assert (img2img.request.image, img2img.request.strength) == (IMAGE, 0.6)
    assert img2img.request.inpaint is None
    assert set(img2img.ignored) == {"Mask blur", "Mask mode"}
    masked = parse(f"a fox\n{LINE}{IMG2IMG}", IMAGE, MASK)
    assert masked.request.inpaint == Inpaint(mask_image=MASK, mask_blur=8, invert=True)
    assert masked.ignored == {}


def test_faces_outside_the_mask_are_not_restored_after_an_upscale() -> None:
    """A1111's extras may have done so; a request cannot."""
    extras = "Postprocess upscale by: 2, GFPGAN visibility: 0.4"
    text = f"a fox\n{LINE}{IMG2IMG}, {extras}"
    faces = parse(text, IMAGE).request.face_restore
    assert faces
    assert faces.after_upscale
    masked = parse(text, IMAGE, MASK)
    assert masked.request.face_restore is None
    assert masked.ignored == {"Face restoration after upscale": "True"}


@pytest.mark.parametrize("more", ["", ", Variation seed strength: 0"])
def test_a_variation_without_strength_is_ignored(more: str) -> None:
    parsed = parse(f"a fox\n{LINE}, Variation seed: 5{more}")
    assert parsed.request.variation_seed is None
    assert parsed.ignored == {"Variation seed": "5"}


def test_a_given_image_replaces_the_one_named_in_the_text() -> None:
    request = GenerateRequest(prompt="x", width=64, height=64, image=MASK, strength=0.5)
    text = written(request)
    assert parse(text).request.image == MASK
    assert parse(text, IMAGE).request.image == IMAGE


def written(request: GenerateRequest) -> str:
    models = Models(request.checkpoint or "demo", "0" * 64, {"ink": "1" * 64}, {})
    return generated(request, request.seed or 0, models)


# What a text can express: a prompt without a line that A1111 would read as the negative prompt,
# single images, LoRAs as tags, and no settings that have no effect.
prompts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(
    lambda text: "\nNegative prompt:" not in "\n" + text and "\r" not in text
)
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters='/\\\0:~."\r'),
    min_size=1,
    max_size=20,
).filter(lambda name: bool(name.strip()) and not name.startswith("Use same "))
sizes = st.integers(8, 256).map(lambda size: size * 8)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
seeds = st.integers(0, 2**32 - 1)
schedulers = st.sampled_from(get_args(SchedulerName))


def schedules_of(scheduler: SchedulerName) -> st.SearchStrategy[SigmaSchedule]:
    schedules = get_args(SigmaSchedule)
    return st.just("automatic") if scheduler in OWN_TIMESTEPS else st.sampled_from(schedules)


@st.composite
def hires_passes(draw: st.DrawFn, first: SchedulerName) -> HiresPass:
    fields: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"scale": st.floats(1, 8, exclude_min=True)}),
            st.fixed_dictionaries({"width": sizes}, optional={"height": sizes}),
            st.fixed_dictionaries({"height": sizes}),
        )
    )
    own = draw(st.none() | schedulers)
    fields |= {"scheduler": own, "sigma_schedule": draw(st.none() | schedules_of(own or first))}
    if own in OWN_TIMESTEPS:
        fields["sigma_schedule"] = "automatic"
    return HiresPass(
        **fields,
        upscaler=draw(st.sampled_from([*get_args(LatentMode), "lanczos", "4x-Sharp"])),
        num_inference_steps=draw(st.none() | st.integers(1, 150)),
        strength=draw(st.floats(0.01, 1)),
        prompt=draw(st.none() | prompts),
        negative_prompt=draw(st.none() | prompts),
        checkpoint=draw(st.none() | names),
    )


@st.composite
def inpaints(draw: st.DrawFn) -> Inpaint:
    only_masked = draw(st.booleans())
    return Inpaint(
        mask_image=MASK,
        mask_blur=draw(st.integers(0, 64)),
        invert=draw(st.booleans()),
        fill=draw(st.sampled_from(get_args(MaskFill))),
        only_masked=only_masked,
        padding=draw(st.integers(0, 256)) if only_masked else 32,
    )


@st.composite
def img2imgs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "image": IMAGE,
        "strength": draw(shares),
        "resize_mode": draw(st.sampled_from(get_args(ResizeMode))),
        "inpaint": draw(st.none() | inpaints()),
    }


@st.composite
def requests(draw: st.DrawFn) -> GenerateRequest:
    scheduler = draw(schedulers)
    fields: dict[str, Any] = draw(st.just({}) | img2imgs())
    if draw(st.booleans()):
        fields |= {"variation_seed": draw(seeds), "variation_strength": draw(shares)}
    if draw(st.booleans()):
        fields |= {"refiner_checkpoint": draw(names), "refiner_switch_at": draw(shares)}
    upscale = draw(st.none() | st.builds(UpscalePass, scale=st.floats(1, 8, exclude_min=True)))
    inversion = st.builds(TextualInversion, name=names, token=st.none() | names, scale=shares)
    return GenerateRequest(
        **fields,
        prompt=draw(prompts),
        negative_prompt=draw(prompts),
        checkpoint=draw(names),
        width=draw(sizes),
        height=draw(sizes),
        num_inference_steps=draw(st.integers(1, 150)),
        guidance_scale=draw(st.floats(1, 30)),
        scheduler=scheduler,
        sigma_schedule=draw(schedules_of(scheduler)),
        eta=draw(st.none() | shares),
        emphasis=draw(st.sampled_from(get_args(Emphasis))),
        clip_skip=draw(st.none() | st.integers(1, 11)),
        seed=draw(seeds),
        seed_resize_from=draw(st.none() | st.tuples(sizes, sizes)),
        rng=draw(st.sampled_from(["cpu", "gpu"])),
        textual_inversions=tuple(draw(st.lists(inversion, max_size=2))),
        hires=draw(st.none() | hires_passes(scheduler)),
        upscale=upscale,
        face_restore=draw(
            st.none()
            | st.builds(
                FaceRestore,
                restorer=names,
                visibility=st.floats(0, 1, exclude_min=True),
                fidelity=st.none() | shares,
                after_upscale=st.booleans()
                if upscale and not fields.get("inpaint")
                else st.just(False),
            )
        ),
    )


@settings(max_examples=300)
@given(request=requests())
def test_what_is_written_is_read_back(request: GenerateRequest) -> None:
    parsed = parse(written(request))
    assert parsed.request == request
    assert parsed.ignored == {}


pieces = st.sampled_from(
    [*'",:{}[]\\\n\r x0-', "Steps:", "Size:", "Negative prompt:", "Hires upscale:", "Sampler:"]
)


def test_an_image_without_a_text_is_refused() -> None:
    """`parse_parameters(read_parameters(content))`, as in the README, raised AttributeError."""
    with pytest.raises(InvalidRequest, match="carries no text"):
        parse(None)


@settings(max_examples=500)
@given(text=st.one_of(st.text(), st.lists(pieces).map("".join)))
@example("Steps: 20, Size: 1x2x3, Hires upscale: , Hires resize: x")
@example('Steps: 1, Sampler: "')
def test_any_text_is_read_or_refused(text: str) -> None:
    for variant in (text, f"Steps: {text}", f"{LINE}, {text}"):
        with suppress(InvalidRequest):
            assert parse(variant, IMAGE, MASK).request.image is not None


@pytest.mark.parametrize(
    "piece",
    [",", ":", '"', "a:", 'a:"', 'a:"\\",', "a:{", "a:{,", "{", "[", "\n", " ", "\\", ", a"],
)
def test_a_hostile_text_takes_linear_time(piece: str) -> None:
    """Patterns with two ways to match once took minutes for a text of quotes."""
    text = "Steps: 1, Textual inversions: x, b: " + piece * 300_000
    started = time.perf_counter()
    with suppress(InvalidRequest):
        read(text)
    assert time.perf_counter() - started < 2
