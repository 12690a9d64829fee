"""`demo`: what a fleet does, in a minute."""

from pathlib import Path

from imagefleet_producer.cli.output import prepare, report, save
from imagefleet_producer.cli.shell import Out, err, open_client
from imagefleet_producer.client import Client
from imagefleet_producer.progress import follow
from imagefleet_shared.field_types import LANCZOS
from imagefleet_shared.request_parts import HiresPass, ImageRef
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest


def demo(folder: Out = Path("out")) -> None:
    """Draw a picture with a hires pass, then enlarge it: what a fleet does, in a minute."""
    with open_client() as client:
        prepare(folder)
        drawing = client.generate(
            GenerateRequest(
                prompt="a red fox on a white background",
                num_inference_steps=20,
                seed=1,
                hires=HiresPass(scale=2, upscaler=LANCZOS, num_inference_steps=8, strength=0.2),
            )
        )
        follow(err, drawing, "txt2img + hires")
        drawn = drawing.result()
        report(drawn, save(drawing, folder))
        model = _upscaler(client)
        request = UpscaleRequest(
            images=(ImageRef(key=drawn.images[0].key),), upscaler=model, scale=2
        )
        enlarging = client.upscale(request)
        follow(err, enlarging, f"upscale by {model}")
        report(enlarging.result(), save(enlarging, folder))


def _upscaler(client: Client) -> str:
    upscalers = sorted(
        model.name
        for worker in client.workers()
        for model in worker.models
        if model.kind == "upscaler"
    )
    return upscalers[0] if upscalers else LANCZOS
