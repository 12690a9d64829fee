"""The demo's trained models draw what they are asked for.

These tests look at pictures: a sampler, a prompt weight or a LoRA that goes wrong draws something
else, and a judge that knows all subjects says so. Thresholds are under what `bench_demo_model`
measures, by more than a few unlucky seeds.
"""

from random import Random

import pytest

from imagefleet_producer import HiresPass, LoRA
from imagefleet_shared.samplers import SCHEDULER_LABELS
from tests.demo_exam import (
    FIRST_SEED,
    NATURAL,
    rendered_accuracy,
    embedding_share,
    psnr_gain_db,
    accuracy,
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


def test_the_judge_knows_every_subject_on_every_background() -> None:
    """Or what it says of the models would mean nothing."""
    random = Random(1)
    scenes = [
        Scene(subject=subject, background=background)
        for subject in SUBJECTS
        for background in BACKGROUNDS
    ]
    drawn = [draw(scene, any_pose(random)) for scene in scenes]
    assert min(accuracy(drawn, scenes)) > 0.98


def test_a_hundred_scenes_that_were_held_out_are_drawn_right(renderer: DemoRenderer) -> None:
    subjects, backgrounds = rendered_accuracy(renderer, (NATURAL * 3)[:100])
    assert subjects >= 0.85
    assert backgrounds >= 0.9


def test_another_seed_draws_another_picture_of_the_same(renderer: DemoRenderer) -> None:
    scene = NATURAL[0]
    one, other = renderer.render([caption(scene)] * 2, [1, 2])
    assert one.tobytes() != other.tobytes()
    assert classify(one) == classify(other)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_draws_what_is_asked(renderer: DemoRenderer, scheduler: str) -> None:
    # PLMS extrapolates over four steps: steps as large as the others bear make it overshoot.
    steps = 40 if scheduler == "plms" else 20
    subjects, backgrounds = rendered_accuracy(
        renderer, NATURAL[:8], scheduler=scheduler, num_inference_steps=steps
    )
    assert subjects >= 6 / 8
    assert backgrounds >= 7 / 8


def test_a_weighted_prompt_still_draws_what_it_says(renderer: DemoRenderer) -> None:
    """A weight that was read wrong (12 for 1.2), or brackets read as words, spoil the picture.

    The weights of single words cannot be judged here: this UNet reads a caption where its window is
    padded, and padding has no weight.
    """
    scenes = NATURAL[:12]
    prompts = [f"({caption(scene)}:1.2)" for scene in scenes]
    pictures = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + len(scenes)))
    subjects, backgrounds = accuracy(pictures, scenes)
    assert subjects >= 10 / 12
    assert backgrounds >= 10 / 12


def test_a_negative_prompt_keeps_a_colour_away(renderer: DemoRenderer) -> None:
    prompts = ["a fox"] * 16
    seeds = range(FIRST_SEED, FIRST_SEED + 16)
    free = [classify(picture).background for picture in renderer.render(prompts, seeds)]
    most = max(free, key=free.count)
    kept = renderer.render(prompts, seeds, negative_prompt=f"a fox on a {most} background")
    assert [classify(picture).background for picture in kept].count(most) < free.count(most)


def test_a_hires_pass_keeps_what_the_first_pass_drew(renderer: DemoRenderer) -> None:
    scenes = NATURAL[:6]
    hires = HiresPass(scale=2, upscaler="demo-x2", strength=0.1, num_inference_steps=8)
    prompts = [caption(scene) for scene in scenes]
    pictures = renderer.render(prompts, range(FIRST_SEED, FIRST_SEED + 6), hires=hires)
    assert {picture.size for picture in pictures} == {(256, 256)}
    subjects, backgrounds = accuracy(pictures, scenes)
    assert subjects >= 5 / 6
    assert backgrounds >= 5 / 6


@pytest.mark.parametrize("style", ["blueprint", "sticker"])
def test_a_style_moves_pictures_to_its_own_set(renderer: DemoRenderer, style: Style) -> None:
    shares = styled_shares(renderer, style, 20)
    assert shares["moved"] >= 0.9, shares
    assert shares["nearer at 1"] >= shares["nearer at 0"] + 0.5, shares


def test_a_lora_at_scale_0_leaves_the_picture_as_it_was(renderer: DemoRenderer) -> None:
    prompts, seeds = [caption(NATURAL[0])], [FIRST_SEED]
    [before] = renderer.render(prompts, seeds)
    [styled] = renderer.render(prompts, seeds, loras=[LoRA(name="demo-blueprint")])
    [at_zero] = renderer.render(prompts, seeds, loras=[LoRA(name="demo-blueprint", scale=0)])
    [without] = renderer.render(prompts, seeds)
    assert styled.tobytes() != before.tobytes()
    assert at_zero.tobytes() == without.tobytes() == before.tobytes()


def test_a_lora_brings_a_subject_that_the_checkpoint_never_saw(renderer: DemoRenderer) -> None:
    assert snowman_share(renderer, 0.0, 8) == 0
    assert snowman_share(renderer, 1.0, 16) >= 0.85


def test_the_embedding_draws_its_subject(renderer: DemoRenderer) -> None:
    assert embedding_share(renderer, 24) >= 0.7


def test_swinir_beats_bicubic_by_more_than_a_decibel() -> None:
    assert psnr_gain_db(24) >= 1.0
