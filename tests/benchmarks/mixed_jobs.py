"""Jobs like those of many users: different prompts and seeds, sometimes different settings."""

from random import Random

from imagefleet_producer import GenerateRequest, HiresPass, LoRA
from tools.training.captions import caption
from tools.training.pictures import Scene
from tools.training.subjects import BACKGROUNDS, SUBJECTS

_NEGATIVES = ("", "blurry", "black background", "text, border")


def mixed_jobs(jobs: int, steps: int, turn: int) -> list[GenerateRequest]:
    """Jobs for the demo's trained checkpoint in random order; each `turn` has other prompts.

    Of every eight, three are plain, one uses the demo's embedding, one is wide, two have a LoRA
    each, and one has a hires pass. diffusers supports the format of both LoRAs too.
    """
    plain = equal_jobs(jobs, steps, turn, checkpoint="demo", side=128)
    requests = [_vary(request, index % 8) for index, request in enumerate(plain)]
    Random(turn).shuffle(requests)
    return requests


def equal_jobs(
    jobs: int, steps: int, turn: int, checkpoint: str, side: int
) -> list[GenerateRequest]:
    """Jobs that differ in prompt, negative prompt and seed only."""
    random = Random(turn)
    subjects, backgrounds = list(SUBJECTS), list(BACKGROUNDS)
    return [
        GenerateRequest(
            prompt=caption(
                Scene(subject=random.choice(subjects), background=random.choice(backgrounds))
            ),
            negative_prompt=random.choice(_NEGATIVES),
            checkpoint=checkpoint,
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=4,
            seed=1000 * turn + index,
        )
        for index in range(jobs)
    ]


def _vary(request: GenerateRequest, kind: int) -> GenerateRequest:
    executed = request.num_inference_steps // 2
    hires = HiresPass(scale=2, upscaler="lanczos", strength=0.5, num_inference_steps=executed)
    changes: dict[int, dict[str, object]] = {
        3: {"prompt": "a demo-owl on a white background"},
        4: {"width": 192},
        5: {"loras": (LoRA(name="demo-blueprint"),)},
        6: {"loras": (LoRA(name="demo-snowman", scale=0.8),)},
        7: {"hires": hires},
    }
    return request.model_copy(update=changes.get(kind, {}))
