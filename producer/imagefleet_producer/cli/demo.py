"""`demo`: shows what a fleet does, in a minute."""

from pathlib import Path

from imagefleet_producer.cli.output import prepare, report, save
from imagefleet_producer.cli.shell import Out, err, open_client
from imagefleet_producer.client import Client
from imagefleet_producer.progress import follow
from imagefleet_shared.field_types import LANCZOS
from imagefleet_shared.request_parts import HiresPass, ImageRef
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest


def demo(folder: Out = Path("out")) -> None:
    """Generate an image with a hires pass, then upscale it: what a fleet does, in a minute."""
    with open_client() as client:
        prepare(folder)
        generate_job = client.generate(
            GenerateRequest(
                prompt="a red fox on a white background",
                num_inference_steps=20,
                seed=1,
                hires=HiresPass(scale=2, upscaler=LANCZOS, num_inference_steps=8, strength=0.2),
            )
        )
        follow(err, generate_job, "txt2img + hires")
        generated = generate_job.result()
        report(generated, save(generate_job, folder))
        upscaler = _upscaler(client)
        request = UpscaleRequest(
            images=(ImageRef(key=generated.images[0].key),), upscaler=upscaler, scale=2
        )
        upscale_job = client.upscale(request)
        follow(err, upscale_job, f"upscale by {upscaler}")
        report(upscale_job.result(), save(upscale_job, folder))


def _upscaler(client: Client) -> str:
    upscalers = sorted(
        model.name
        for worker in client.workers()
        for model in worker.models
        if model.kind == "upscaler"
    )
    return upscalers[0] if upscalers else LANCZOS
