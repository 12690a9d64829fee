"""What a request's fields do to a picture, drawn by a real studio on small random models."""

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
    return open_local_renderer(demo_models, tmp_path_factory.mktemp("atelier"))


def pixels(picture: Image.Image) -> NDArray[np.int16]:
    return np.asarray(picture, dtype=np.int16)


def differ(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures differ by more than rounding."""
    assert one.size == other.size
    return bool(np.abs(pixels(one) - pixels(other)).max() > 2)


@pytest.mark.parametrize("scheduler", SCHEDULER_LABELS)
def test_every_scheduler_draws_its_own_picture_in_the_steps_it_says(
    renderer: LocalRenderer, scheduler: SchedulerName
) -> None:
    picture = renderer.draw(scheduler=scheduler, num_inference_steps=6)
    planned, taken = renderer.steps("denoise")
    assert planned == taken > 0
    assert pixels(picture).std() > 5
    if scheduler != "euler":
        assert differ(picture, renderer.draw(num_inference_steps=6))


def test_a_word_late_in_a_long_prompt_counts(renderer: LocalRenderer) -> None:
    words = ["lantern"] * 290
    before = renderer.draw(" ".join(words))
    words[200] = "elephant"
    assert renderer.draw(" ".join(words)).tobytes() != before.tobytes()


def test_a_prompt_that_changes_after_the_last_step_is_its_first_part(
    renderer: LocalRenderer,
) -> None:
    steps = {"num_inference_steps": 8}
    first, last = renderer.draw("a fox", **steps), renderer.draw("a house", **steps)
    assert not differ(renderer.draw("a [fox:house:1.0]", **steps), first)
    midway = renderer.draw("a [fox:house:0.25]", **steps)
    assert differ(midway, first)
    assert differ(midway, last)


def test_alternating_words_draw_neither(renderer: LocalRenderer) -> None:
    mixed = renderer.draw("a [fox|house]")
    assert differ(mixed, renderer.draw("a fox"))
    assert differ(mixed, renderer.draw("a house"))


def test_parts_joined_by_and_steer_together(renderer: LocalRenderer) -> None:
    both = renderer.draw("a fox AND a house")
    assert differ(both, renderer.draw("a fox"))
    assert not differ(renderer.draw("a fox AND a house :0"), renderer.draw("a fox"))
    half = renderer.draw("a fox :0.5 AND a fox :0.5")
    assert not differ(half, renderer.draw("a fox"))


def test_and_steers_without_guidance_too(renderer: LocalRenderer) -> None:
    unguided = renderer.draw("a fox", guidance_scale=1)
    assert not differ(renderer.draw("a fox AND a house :0", guidance_scale=1), unguided)


@pytest.mark.parametrize("emphasis", ["no_norm", "ignore", "none"])
def test_modes_of_emphasis_draw_other_pictures(renderer: LocalRenderer, emphasis: str) -> None:
    text = "a (red:1.8) fox"
    assert differ(renderer.draw(text), renderer.draw(text, emphasis=emphasis))
    if emphasis == "ignore":
        assert not differ(renderer.draw(text, emphasis=emphasis), renderer.draw("a red fox"))


def test_eta_is_the_share_of_fresh_noise(renderer: LocalRenderer) -> None:
    ancestral = renderer.draw(scheduler="euler_ancestral")
    assert not differ(renderer.draw(scheduler="euler_ancestral", eta=1), ancestral)
    assert not differ(renderer.draw(scheduler="euler_ancestral", eta=0), renderer.draw())


def test_a_variation_goes_from_one_seed_to_the_other(renderer: LocalRenderer) -> None:
    ours, theirs = renderer.draw(seed=1), renderer.draw(seed=2)
    assert not differ(renderer.draw(seed=1, variation_seed=2, variation_strength=1), theirs)
    between = renderer.draw(seed=1, variation_seed=2, variation_strength=0.3)
    assert differ(between, ours)
    assert differ(between, theirs)


def test_with_a_variation_its_seed_counts_on(renderer: LocalRenderer) -> None:
    """As in A1111: all pictures have the first seed."""
    fields: dict[str, Any] = {"variation_strength": 0.3, "seed": 1}
    _, second = renderer.draw_all(variation_seed=5, num_images=2, **fields)
    assert not differ(second, renderer.draw(variation_seed=6, **fields))


def test_numbers_of_a_gpu_are_others_than_those_of_a_cpu(renderer: LocalRenderer) -> None:
    assert differ(renderer.draw(rng="gpu"), renderer.draw(rng="cpu"))


def test_a_seed_resized_is_not_the_seed_at_that_size(renderer: LocalRenderer) -> None:
    wide = renderer.draw(width=96, seed_resize_from=(64, 64))
    assert differ(wide, renderer.draw(width=96))


@pytest.mark.parametrize("upscaler", [*LATENT_MODES, "lanczos", "nearest", "demo-x2"])
def test_every_upscaler_leads_to_a_hires_picture_of_its_own(
    renderer: LocalRenderer, upscaler: str
) -> None:
    hires = {"scale": 1.5, "upscaler": upscaler, "num_inference_steps": 3, "strength": 0.5}
    picture = renderer.draw(hires=hires)
    assert picture.size == (96, 96)
    assert renderer.steps("hires") == (3, 3)
    # Antialiasing is for making smaller: enlarged, it changes nothing.
    if not upscaler.removesuffix("_antialiased").endswith("latent"):
        assert differ(picture, renderer.draw(hires={**hires, "upscaler": "latent"}))


def test_a_hires_pass_to_other_proportions_is_cropped(renderer: LocalRenderer) -> None:
    for upscaler in ("latent", "lanczos"):
        hires = {"width": 128, "height": 96, "upscaler": upscaler, "num_inference_steps": 2}
        assert renderer.draw(hires=hires).size == (128, 96)


@pytest.mark.parametrize(
    "own",
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
def test_a_hires_pass_has_settings_of_its_own(renderer: LocalRenderer, own: dict[str, Any]) -> None:
    hires: dict[str, Any] = {"scale": 1.5, "num_inference_steps": 3}
    plain = renderer.draw(hires=hires)
    assert differ(plain, renderer.draw(hires={**hires, **own}))
    assert not differ(plain, renderer.draw(hires=hires)), "nothing of it is left"


def test_a_hires_pass_may_be_drawn_by_another_family(renderer: LocalRenderer) -> None:
    hires = {"scale": 2, "upscaler": "lanczos", "checkpoint": "demo-xl", "num_inference_steps": 2}
    assert renderer.draw(hires=hires).size == (128, 128)


@pytest.mark.parametrize("fill", ["original", "fill", "latent_noise", "latent_nothing"])
def test_what_is_not_masked_stays_to_the_byte(renderer: LocalRenderer, fill: str) -> None:
    start = photo()
    inpaint = {"mask_image": renderer.put(mask()), "fill": fill, "mask_blur": 2}
    drawn = renderer.draw(image=renderer.put(start), inpaint=inpaint, strength=0.8)
    change = np.abs(pixels(drawn) - pixels(start)).max(axis=2)
    outside = np.asarray(mask((8, 8, 56, 56))) == 0
    assert change[outside].max() == 0
    assert change[24:40, 24:40].max() > 5


def test_fills_draw_different_pictures(renderer: LocalRenderer) -> None:
    drawn = [
        renderer.draw(
            image=renderer.put(photo()),
            inpaint={"mask_image": renderer.put(mask()), "fill": fill},
            strength=0.6,
        )
        for fill in ("original", "fill", "latent_noise", "latent_nothing")
    ]
    for place, one in enumerate(drawn):
        assert all(differ(one, other) for other in drawn[place + 1 :])


def test_only_masked_draws_the_region_at_full_size_and_keeps_the_rest(
    renderer: LocalRenderer,
) -> None:
    start = photo(160, 120)
    white = Image.new("L", start.size)
    white.paste(255, (40, 40, 64, 64))
    inpaint = {
        **{"mask_image": renderer.put(white), "only_masked": True, "padding": 8, "mask_blur": 0},
    }
    drawn = renderer.draw(image=renderer.put(start), inpaint=inpaint, strength=0.9)
    assert drawn.size == start.size
    change = np.abs(pixels(drawn) - pixels(start)).max(axis=2)
    assert change[np.asarray(white) == 0].max() == 0
    assert change[44:60, 44:60].max() > 5


@pytest.mark.parametrize("only_masked", [False, True])
def test_faces_are_restored_where_the_mask_is_white_and_nowhere_else(
    demo_models: Path, tmp_path: Path, only_masked: bool
) -> None:
    """The kept pixels were laid over the drawn ones first, and a face across both was redrawn."""
    copytree(demo_models, tmp_path / "models")
    write_face_models(tmp_path / "models")
    save_file(one_face(), tmp_path / "models/faces/detection_mobilenet0.25_Final.safetensors")
    renderer = open_renderer(tmp_path / "models", tmp_path / "store", WorkerSettings())
    start = photo(96, 96)
    white = Image.new("L", start.size)
    white.paste(255, (32, 32, 64, 64))
    fields: dict[str, Any] = {
        "image": renderer.put(start),
        "inpaint": {
            **{"mask_image": renderer.put(white), "mask_blur": 0},
            **{"only_masked": only_masked, "padding": 16},
        },
        **{"width": 96, "height": 96},
    }
    plain = renderer.draw(**fields)
    restored = renderer.draw(**fields, face_restore={"restorer": "tiny"})
    assert renderer.steps("faces") == (1, 1)
    kept = np.asarray(white) == 0
    assert np.array_equal(pixels(restored)[kept], pixels(start)[kept])
    assert np.abs(pixels(restored) - pixels(plain))[~kept].max() > 5


def test_an_inverted_mask_draws_the_rest(renderer: LocalRenderer) -> None:
    start = photo()
    inpaint = {"mask_image": renderer.put(mask()), "invert": True, "mask_blur": 0}
    drawn = renderer.draw(image=renderer.put(start), inpaint=inpaint, strength=0.8)
    assert np.array_equal(pixels(drawn)[24:40, 24:40], pixels(start)[24:40, 24:40])


@pytest.mark.parametrize(
    "resize_mode", ["just_resize", "crop_and_resize", "resize_and_fill", "latent"]
)
def test_resize_modes_fit_a_picture_of_other_proportions(
    renderer: LocalRenderer, resize_mode: str
) -> None:
    start = renderer.put(photo(120, 72))
    drawn = renderer.draw(image=start, strength=0.3, resize_mode=resize_mode)
    assert drawn.size == (SIDE, SIDE)
    if resize_mode != "just_resize":
        assert differ(drawn, renderer.draw(image=start, strength=0.3))


@pytest.mark.parametrize("scheduler", ["euler", "lcm"])
def test_a_refiner_takes_over_late(renderer: LocalRenderer, scheduler: str) -> None:
    """Of LCM's fifty levels every one counted as an early one: its refiner never drew."""
    fields: dict[str, Any] = {"num_inference_steps": 8, "scheduler": scheduler}
    plain = renderer.draw(**fields)
    early, late = (
        renderer.draw(**fields, refiner_checkpoint="other", refiner_switch_at=at)
        for at in (0.1, 0.8)
    )
    assert differ(late, plain)
    distances = [np.abs(pixels(drawn) - pixels(plain)).mean() for drawn in (late, early)]
    assert distances[0] < distances[1]
    never = renderer.draw(
        num_inference_steps=4, refiner_checkpoint="other", refiner_switch_at=0.999
    )
    assert not differ(never, renderer.draw(num_inference_steps=4)), "its turn does not come"


@pytest.mark.parametrize(("scheduler", "in_steps"), [("euler", 6), ("heun", 12)])
def test_a_hires_prompt_changes_by_the_steps_asked_for(
    renderer: LocalRenderer, scheduler: str, in_steps: int
) -> None:
    """It counted those of the stretched schedule, most of which a hires pass leaves out."""

    def drawn(prompt: str) -> Image.Image:
        hires = {"scale": 1.5, "num_inference_steps": 8, "strength": 0.25, "prompt": prompt}
        return renderer.draw(scheduler=scheduler, num_inference_steps=2, hires=hires)

    changed = drawn("[a dog:a cat:1.5]")
    assert differ(changed, drawn("a dog"))
    assert differ(changed, drawn("a cat"))
    assert not differ(changed, drawn(f"[a dog:a cat:{in_steps}]"))


def test_sdxls_refiner_goes_on_where_the_base_stopped(renderer: LocalRenderer) -> None:
    plain = renderer.draw(checkpoint="demo-xl")
    refined = renderer.draw(
        checkpoint="demo-xl", refiner_checkpoint="xl-refiner", refiner_switch_at=0.5
    )
    assert differ(refined, plain)
    assert renderer.steps("denoise") == (4, 4)


def test_sdxls_refiner_has_room_for_the_words_that_are_embeddings_for_the_base(
    demo_models: Path, tmp_path: Path
) -> None:
    """It was given as many windows as the base, and stopped at its first step."""
    own = open_local_renderer(demo_models, tmp_path)
    width = own.warm("demo-xl").pipeline.text_encoder.config.hidden_size
    wide = own.warm("demo-xl").pipeline.text_encoder_2.config.hidden_size
    vectors = {"clip_l": torch.ones(1, width), "clip_g": torch.ones(1, wide)}
    save_file(vectors, tmp_path / "models/embeddings/unaestheticxl-bad-hands.safetensors")

    own.draw(
        negative_prompt="cat " * 73 + "unaestheticxl-bad-hands",
        checkpoint="demo-xl",
        refiner_checkpoint="xl-refiner",
    )
    assert own.steps("denoise") == (4, 4)
