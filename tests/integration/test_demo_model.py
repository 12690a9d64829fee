"""The demo's trained models generate what the prompt says.

These tests look at images: a broken scheduler, prompt weight or LoRA generates something else, and
a classifier that knows all subjects detects it. Thresholds are below what `bench_demo_model`
measures, by more than a few unlucky seeds.
"""

from random import Random

import pytest

from imagefleet_producer import HiresPass, LoRA
from imagefleet_shared.samplers import SCHEDULER_LABELS
from tests.demo_exam import (
    FIRST_SEED,
    NATURAL,
    accuracy,
    embedding_share,
    psnr_gain_db,
    rendered_accuracy,
    snowman_share,
    styled_shares,
)
from tests.demo_renderer import DemoRenderer
from tools.training.captions import caption
from tools.training.judge import classify
from tools.training.pictures import Scene, Style, any_pose, draw
from tools.training.subjects import BACKGROUNDS, SUBJECTS

pytestmark = [
    # spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    # diffusers' KDPM2 schedulers on NumPy 2.
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

# All but LCM, which is for models that were distilled for it.
SCHEDULERS = [name for name in SCHEDULER_LABELS if name != "lcm"]


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> DemoRenderer:
    return DemoRenderer(tmp_path_factory.mktemp("store"))


def test_the_classifier_knows_every_subject_on_every_background() -> None:
    """Otherwise its results on the models would mean nothing."""
    random = Random(1)
    scenes = [
        Scene(subject=subject, background=background)
        for subject in SUBJECTS
        for background in BACKGROUNDS
    ]
    images = [draw(scene, any_pose(random)) for scene in scenes]
    assert min(accuracy(images, scenes)) > 0.98


def test_a_hundred_held_out_scenes_are_generated_correctly(renderer: DemoRenderer) -> None:
    subjects, backgrounds = rendered_accuracy(renderer, (NATURAL * 3)[:100])
    assert subjects >= 0.85
    assert backgrounds >= 0.9


def test_another_seed_gives_another_image_of_the_same_scene(renderer: DemoRenderer) -> None:
    scene = NATURAL[0]
    one, other = renderer.render([caption(scene)] * 2, [1, 2])
    assert one.tobytes() != other.tobytes()
    assert classify(one) == classify(other)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_generates_what_the_prompt_says(
    renderer: DemoRenderer, scheduler: str
) -> None:
    # PLMS extrapolates over four steps and overshoots with the step size of the other schedulers.
    steps = 40 if scheduler == "plms" else 20
    subjects, backgrounds = rendered_accuracy(
        renderer, NATURAL[:8], scheduler=scheduler, num_inference_steps=steps
    )
    assert subjects >= 6 / 8
    assert backgrounds >= 7 / 8


def test_a_weighted_prompt_still_generates_what_it_says(renderer: DemoRenderer) -> None:
    """A weight that is parsed wrong (12 for 1.2), or brackets read as words, spoil the image.

    The weights of single words cannot be tested here: this UNet reads a caption from its padding
    tokens, and padding has no weight.
    """
    scenes = NATURAL[:12]
    prompts = [f"({caption(scene)}:1.2)" for scene in scenes]
    images = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + len(scenes)))
    subjects, backgrounds = accuracy(images, scenes)
    assert subjects >= 10 / 12
    assert backgrounds >= 10 / 12


def test_a_negative_prompt_avoids_a_colour(renderer: DemoRenderer) -> None:
    prompts = ["a fox"] * 16
    seeds = range(FIRST_SEED, FIRST_SEED + 16)
    before = [classify(image).background for image in renderer.render(prompts, seeds)]
    colour = max(before, key=before.count)
    images = renderer.render(prompts, seeds, negative_prompt=f"a fox on a {colour} background")
    assert [classify(image).background for image in images].count(colour) < before.count(colour)


def test_a_hires_pass_preserves_the_first_passs_image(renderer: DemoRenderer) -> None:
    scenes = NATURAL[:6]
    hires = HiresPass(scale=2, upscaler="demo-x2", strength=0.1, num_inference_steps=8)
    prompts = [caption(scene) for scene in scenes]
    images = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + 6), hires=hires)
    assert {image.size for image in images} == {(256, 256)}
    subjects, backgrounds = accuracy(images, scenes)
    assert subjects >= 5 / 6
    assert backgrounds >= 5 / 6


@pytest.mark.parametrize("style", ["blueprint", "sticker"])
def test_a_style_lora_moves_images_to_its_own_set(renderer: DemoRenderer, style: Style) -> None:
    shares = styled_shares(renderer, style, 20)
    assert shares["moved"] >= 0.9, shares
    assert shares["nearer at 1"] >= shares["nearer at 0"] + 0.5, shares


def test_a_lora_at_scale_0_does_not_change_the_image(renderer: DemoRenderer) -> None:
    prompts, seeds = [caption(NATURAL[0])], [FIRST_SEED]
    [before] = renderer.render(prompts, seeds)
    [styled] = renderer.render(prompts, seeds, loras=[LoRA(name="demo-blueprint")])
    [at_zero] = renderer.render(prompts, seeds, loras=[LoRA(name="demo-blueprint", scale=0)])
    [without] = renderer.render(prompts, seeds)
    assert styled.tobytes() != before.tobytes()
    assert at_zero.tobytes() == without.tobytes() == before.tobytes()


def test_a_lora_adds_a_subject_that_the_checkpoint_never_saw(renderer: DemoRenderer) -> None:
    assert snowman_share(renderer, 0.0, 8) == 0
    assert snowman_share(renderer, 1.0, 16) >= 0.85


def test_the_embedding_generates_its_subject(renderer: DemoRenderer) -> None:
    assert embedding_share(renderer, 24) >= 0.7


def test_swinir_beats_bicubic_by_more_than_a_decibel() -> None:
    assert psnr_gain_db(24) >= 1.0
