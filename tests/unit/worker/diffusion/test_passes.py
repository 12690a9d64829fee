"""The effect of request fields on pictures, rendered by the real renderer with small models."""

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from imagefleet_shared.field_types import LATENT_MODES
from imagefleet_shared.samplers import SCHEDULER_LABELS, SchedulerName
from imagefleet_worker.settings import WorkerSettings
from tests.face_models import one_face, write_face_models
from tests.local_renderer import (
    SIDE,
    LocalRenderer,
    mask,
    open_local_renderer,
    open_renderer,
    photo,
)


@pytest.fixture(scope="module")
def renderer(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRenderer:
    return open_local_renderer(demo_models, tmp_path_factory.mktemp("renderer"))


def pixels(picture: Image.Image) -> NDArray[np.int16]:
    return np.asarray(picture, dtype=np.int16)


def differ(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures differ by more than rounding."""
    assert one.size == other.size
    return bool(np.abs(pixels(one) - pixels(other)).max() > 2)


@pytest.mark.parametrize("scheduler", SCHEDULER_LABELS)
def test_every_scheduler_gives_its_own_picture_in_the_number_of_steps_it_reports(
    renderer: LocalRenderer, scheduler: SchedulerName
) -> None:
    picture = renderer.render(scheduler=scheduler, num_inference_steps=6)
    planned, taken = renderer.steps("denoise")
    assert planned == taken > 0
    assert pixels(picture).std() > 5
    if scheduler != "euler":
        assert differ(picture, renderer.render(num_inference_steps=6))


def test_a_word_late_in_a_long_prompt_counts(renderer: LocalRenderer) -> None:
    words = ["lantern"] * 290
    before = renderer.render(" ".join(words))
    words[200] = "elephant"
    assert renderer.render(" ".join(words)).tobytes() != before.tobytes()


def test_a_prompt_that_changes_after_the_last_step_is_its_first_text(
    renderer: LocalRenderer,
) -> None:
    steps = {"num_inference_steps": 8}
    first, last = renderer.render("a fox", **steps), renderer.render("a house", **steps)
    assert not differ(renderer.render("a [fox:house:1.0]", **steps), first)
    midway = renderer.render("a [fox:house:0.25]", **steps)
    assert differ(midway, first)
    assert differ(midway, last)


def test_alternating_words_give_a_picture_of_neither(renderer: LocalRenderer) -> None:
    mixed = renderer.render("a [fox|house]")
    assert differ(mixed, renderer.render("a fox"))
    assert differ(mixed, renderer.render("a house"))


def test_parts_joined_by_and_guide_together(renderer: LocalRenderer) -> None:
    both = renderer.render("a fox AND a house")
    assert differ(both, renderer.render("a fox"))
    assert not differ(renderer.render("a fox AND a house :0"), renderer.render("a fox"))
    half = renderer.render("a fox :0.5 AND a fox :0.5")
    assert not differ(half, renderer.render("a fox"))


def test_parts_joined_by_and_guide_at_scale_1_too(renderer: LocalRenderer) -> None:
    unguided = renderer.render("a fox", guidance_scale=1)
    assert not differ(renderer.render("a fox AND a house :0", guidance_scale=1), unguided)


@pytest.mark.parametrize("emphasis", ["no_norm", "ignore", "none"])
def test_emphasis_modes_give_different_pictures(renderer: LocalRenderer, emphasis: str) -> None:
    text = "a (red:1.8) fox"
    assert differ(renderer.render(text), renderer.render(text, emphasis=emphasis))
    if emphasis == "ignore":
        assert not differ(renderer.render(text, emphasis=emphasis), renderer.render("a red fox"))


def test_eta_scales_the_ancestral_noise(renderer: LocalRenderer) -> None:
    ancestral = renderer.render(scheduler="euler_ancestral")
    assert not differ(renderer.render(scheduler="euler_ancestral", eta=1), ancestral)
    assert not differ(renderer.render(scheduler="euler_ancestral", eta=0), renderer.render())


def test_a_variation_interpolates_between_two_seeds(renderer: LocalRenderer) -> None:
    ours, theirs = renderer.render(seed=1), renderer.render(seed=2)
    assert not differ(renderer.render(seed=1, variation_seed=2, variation_strength=1), theirs)
    between = renderer.render(seed=1, variation_seed=2, variation_strength=0.3)
    assert differ(between, ours)
    assert differ(between, theirs)


def test_with_a_variation_the_variation_seed_is_incremented(renderer: LocalRenderer) -> None:
    """As in A1111: all pictures have the first seed."""
    fields: dict[str, Any] = {"variation_strength": 0.3, "seed": 1}
    _, second = renderer.render_all(variation_seed=5, num_images=2, **fields)
    assert not differ(second, renderer.render(variation_seed=6, **fields))


def test_random_numbers_of_gpu_and_cpu_differ(renderer: LocalRenderer) -> None:
    assert differ(renderer.render(rng="gpu"), renderer.render(rng="cpu"))


def test_seed_resizing_changes_the_picture(renderer: LocalRenderer) -> None:
    wide = renderer.render(width=96, seed_resize_from=(64, 64))
    assert differ(wide, renderer.render(width=96))


@pytest.mark.parametrize("upscaler", [*LATENT_MODES, "lanczos", "nearest", "demo-x2"])
def test_every_upscaler_gives_its_own_hires_picture(renderer: LocalRenderer, upscaler: str) -> None:
    hires = {"scale": 1.5, "upscaler": upscaler, "num_inference_steps": 3, "strength": 0.5}
    picture = renderer.render(hires=hires)
    assert picture.size == (96, 96)
    assert renderer.steps("hires") == (3, 3)
    # Antialiasing has no effect when enlarging.
    if not upscaler.removesuffix("_antialiased").endswith("latent"):
        assert differ(picture, renderer.render(hires={**hires, "upscaler": "latent"}))


def test_a_hires_pass_to_other_proportions_is_cropped(renderer: LocalRenderer) -> None:
    for upscaler in ("latent", "lanczos"):
        hires = {"width": 128, "height": 96, "upscaler": upscaler, "num_inference_steps": 2}
        assert renderer.render(hires=hires).size == (128, 96)


@pytest.mark.parametrize(
    "overrides",
    [
        {"scheduler": "DPM++ 2M Karras"},
        {"prompt": "a house"},
        {"negative_prompt": "grey"},
        {"prompt": "a red fox <lora:demo-one:1>"},
        {"loras": [{"name": "demo-one"}]},
        {"checkpoint": "other"},
    ],
    ids=str,
)
def test_a_hires_pass_may_override_settings(
    renderer: LocalRenderer, overrides: dict[str, Any]
) -> None:
    hires: dict[str, Any] = {"scale": 1.5, "num_inference_steps": 3}
    plain = renderer.render(hires=hires)
    assert differ(plain, renderer.render(hires={**hires, **overrides}))
    assert not differ(plain, renderer.render(hires=hires)), "the overrides left no trace"


def test_a_hires_pass_may_use_a_checkpoint_of_another_family(renderer: LocalRenderer) -> None:
    hires = {"scale": 2, "upscaler": "lanczos", "checkpoint": "demo-xl", "num_inference_steps": 2}
    assert renderer.render(hires=hires).size == (128, 128)


@pytest.mark.parametrize("fill", ["original", "fill", "latent_noise", "latent_nothing"])
def test_unmasked_pixels_are_unchanged(renderer: LocalRenderer, fill: str) -> None:
    start = photo()
    inpaint = {"mask_image": renderer.upload(mask()), "fill": fill, "mask_blur": 2}
    rendered = renderer.render(image=renderer.upload(start), inpaint=inpaint, strength=0.8)
    change = np.abs(pixels(rendered) - pixels(start)).max(axis=2)
    outside = np.asarray(mask((8, 8, 56, 56))) == 0
    assert change[outside].max() == 0
    assert change[24:40, 24:40].max() > 5


def test_fill_modes_give_different_pictures(renderer: LocalRenderer) -> None:
    rendered = [
        renderer.render(
            image=renderer.upload(photo()),
            inpaint={"mask_image": renderer.upload(mask()), "fill": fill},
            strength=0.6,
        )
        for fill in ("original", "fill", "latent_noise", "latent_nothing")
    ]
    for index, one in enumerate(rendered):
        assert all(differ(one, other) for other in rendered[index + 1 :])


def test_only_masked_renders_the_region_at_full_size_and_keeps_the_rest(
    renderer: LocalRenderer,
) -> None:
    start = photo(160, 120)
    white = Image.new("L", start.size)
    white.paste(255, (40, 40, 64, 64))
    inpaint = {
        **{"mask_image": renderer.upload(white), "only_masked": True, "padding": 8, "mask_blur": 0},
    }
    rendered = renderer.render(image=renderer.upload(start), inpaint=inpaint, strength=0.9)
    assert rendered.size == start.size
    change = np.abs(pixels(rendered) - pixels(start)).max(axis=2)
    assert change[np.asarray(white) == 0].max() == 0
    assert change[44:60, 44:60].max() > 5


@pytest.mark.parametrize("only_masked", [False, True])
def test_faces_are_restored_where_the_mask_is_white_and_nowhere_else(
    demo_models: Path, tmp_path: Path, only_masked: bool
) -> None:
    """The overlay was applied first, so a face across the mask's edge changed outside it too."""
    copytree(demo_models, tmp_path / "models")
    write_face_models(tmp_path / "models")
    save_file(one_face(), tmp_path / "models/faces/detection_mobilenet0.25_Final.safetensors")
    renderer = open_renderer(tmp_path / "models", tmp_path / "store", WorkerSettings())
    start = photo(96, 96)
    white = Image.new("L", start.size)
    white.paste(255, (32, 32, 64, 64))
    fields: dict[str, Any] = {
        "image": renderer.upload(start),
        "inpaint": {
            **{"mask_image": renderer.upload(white), "mask_blur": 0},
            **{"only_masked": only_masked, "padding": 16},
        },
        **{"width": 96, "height": 96},
    }
    plain = renderer.render(**fields)
    restored = renderer.render(**fields, face_restore={"restorer": "tiny"})
    assert renderer.steps("faces") == (1, 1)
    unmasked = np.asarray(white) == 0
    assert np.array_equal(pixels(restored)[unmasked], pixels(start)[unmasked])
    assert np.abs(pixels(restored) - pixels(plain))[~unmasked].max() > 5


def test_an_inverted_mask_repaints_the_rest(renderer: LocalRenderer) -> None:
    start = photo()
    inpaint = {"mask_image": renderer.upload(mask()), "invert": True, "mask_blur": 0}
    rendered = renderer.render(image=renderer.upload(start), inpaint=inpaint, strength=0.8)
    assert np.array_equal(pixels(rendered)[24:40, 24:40], pixels(start)[24:40, 24:40])


@pytest.mark.parametrize(
    "resize_mode", ["just_resize", "crop_and_resize", "resize_and_fill", "latent"]
)
def test_resize_modes_fit_a_picture_of_other_proportions(
    renderer: LocalRenderer, resize_mode: str
) -> None:
    start = renderer.upload(photo(120, 72))
    rendered = renderer.render(image=start, strength=0.3, resize_mode=resize_mode)
    assert rendered.size == (SIDE, SIDE)
    if resize_mode != "just_resize":
        assert differ(rendered, renderer.render(image=start, strength=0.3))


@pytest.mark.parametrize("scheduler", ["euler", "lcm"])
def test_a_refiner_takes_over_late(renderer: LocalRenderer, scheduler: str) -> None:
    """All of LCM's fifty levels were counted as early ones, so its refiner was never used."""
    fields: dict[str, Any] = {"num_inference_steps": 8, "scheduler": scheduler}
    plain = renderer.render(**fields)
    early, late = (
        renderer.render(**fields, refiner_checkpoint="other", refiner_switch_at=at)
        for at in (0.1, 0.8)
    )
    assert differ(late, plain)
    distances = [np.abs(pixels(refined) - pixels(plain)).mean() for refined in (late, early)]
    assert distances[0] < distances[1]
    never = renderer.render(
        num_inference_steps=4, refiner_checkpoint="other", refiner_switch_at=0.999
    )
    assert not differ(never, renderer.render(num_inference_steps=4)), "no step is after the switch"


@pytest.mark.parametrize(("scheduler", "in_steps"), [("euler", 6), ("heun", 12)])
def test_a_hires_prompt_schedule_counts_requested_steps(
    renderer: LocalRenderer, scheduler: str, in_steps: int
) -> None:
    """It counted the steps of the stretched schedule, most of which a hires pass skips."""

    def render_hires(prompt: str) -> Image.Image:
        hires = {"scale": 1.5, "num_inference_steps": 8, "strength": 0.25, "prompt": prompt}
        return renderer.render(scheduler=scheduler, num_inference_steps=2, hires=hires)

    changed = render_hires("[a dog:a cat:1.5]")
    assert differ(changed, render_hires("a dog"))
    assert differ(changed, render_hires("a cat"))
    assert not differ(changed, render_hires(f"[a dog:a cat:{in_steps}]"))


def test_the_sdxl_refiner_continues_the_base_models_pass(renderer: LocalRenderer) -> None:
    plain = renderer.render(checkpoint="demo-xl")
    refined = renderer.render(
        checkpoint="demo-xl", refiner_checkpoint="xl-refiner", refiner_switch_at=0.5
    )
    assert differ(refined, plain)
    assert renderer.steps("denoise") == (4, 4)


def test_the_sdxl_refiner_may_take_more_windows_than_the_base(
    demo_models: Path, tmp_path: Path
) -> None:
    """It has no embeddings, whose names are then words; the job failed at the refiner's first step.

    The refiner's texts were padded to the window count of the base.
    """
    renderer = open_local_renderer(demo_models, tmp_path)
    width = renderer.warm("demo-xl").pipeline.text_encoder.config.hidden_size
    wide = renderer.warm("demo-xl").pipeline.text_encoder_2.config.hidden_size
    vectors = {"clip_l": torch.ones(1, width), "clip_g": torch.ones(1, wide)}
    save_file(vectors, tmp_path / "models/embeddings/unaestheticxl-bad-hands.safetensors")

    renderer.render(
        negative_prompt="cat " * 73 + "unaestheticxl-bad-hands",
        checkpoint="demo-xl",
        refiner_checkpoint="xl-refiner",
    )
    assert renderer.steps("denoise") == (4, 4)
