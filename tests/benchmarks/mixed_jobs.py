"""Jobs as many users send them: other prompts and seeds, and now and then other settings."""

from random import Random

from imagefleet_producer import GenerateRequest, HiresPass, LoRA
from tools.training.captions import caption
from tools.training.pictures import Scene
from tools.training.subjects import BACKGROUNDS, SUBJECTS

_NEGATIVES = ("", "blurry", "black background", "text, border")


def mixed_jobs(jobs: int, steps: int, turn: int) -> list[GenerateRequest]:
    """For the demo's trained checkpoint, in random order; another `turn` has other prompts.

    Of eight, three are plain, one has the demo's embedding, one is wide, two have a LoRA each, and
    one has a hires pass. Both LoRAs are of a kind that diffusers reads too.
    """
    plain = equal_jobs(jobs, steps, turn, checkpoint="demo", side=128)
    requests = [_varied(request, place % 8) for place, request in enumerate(plain)]
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
            seed=1000 * turn + place,
        )
        for place in range(jobs)
    ]


def _varied(request: GenerateRequest, kind: int) -> GenerateRequest:
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
