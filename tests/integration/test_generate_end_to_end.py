"""Images from a real fleet (client, Redis, worker process, S3), compared with plain diffusers.

The reference loads the worker's checkpoint with diffusers' own loader and builds its schedulers
directly, so that none of our code is between file and image.
"""

# ruff: noqa: ANN401 — diffusers' pipelines are typed in part: what they take and give is unknown

import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from PIL import Image
from spandrel import ModelLoader
from torch.nn.functional import interpolate

from imagefleet_producer import (
    GenerateRequest,
    HiresPass,
    Job,
    JobNotFound,
    JobStatus,
    Progress,
    UpscalePass,
    UpscaleRequest,
)
from imagefleet_shared.field_types import ImageFormat
from imagefleet_shared.image_files import read_parameters
from imagefleet_shared.samplers import SchedulerName, SigmaSchedule
from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer
from imagefleet_worker.weights.families import Family
from localfleet.environment import child_environment
from tests.fleet import REPOSITORY, TestFleet
from tools import demo_models as tiny

pytestmark = [
    # spandrel's SwinIR calls torch.meshgrid without `indexing`; torch warns once per process.
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    # diffusers' Heun hands tensors to numpy, which finds them old-fashioned.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

PROMPT = "a red fox in the snow, 3:4, watercolour"
NEGATIVE = "blurry, grey"
STEPS = 6
SEED = 12
TIMEOUT_S = 60

# Stable Diffusion's noise schedule, as its own configuration has it.
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
EULER = EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace", steps_offset=1)


def plain_diffusers(checkpoint: Path, family: Family, folder: Path) -> Any:
    """Diffusers' own pipeline of a single-file checkpoint; only sizes and tokenizers are given."""
    parts: dict[str, Any] = {**tiny.demo_models(family, seed=1), "scheduler": EULER}
    parts["tokenizer"] = clip_tokenizer("<|endoftext|>")
    pipeline: Any = StableDiffusionPipeline
    if family == "sdxl":
        pipeline = StableDiffusionXLPipeline
        parts |= {"tokenizer_2": clip_tokenizer("!"), "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    pipeline(**parts).save_pretrained(folder)
    loaded = pipeline.from_single_file(str(checkpoint), config=str(folder), local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded.to(torch.float32)


@pytest.fixture(scope="module")
def txt2img(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`StableDiffusionPipeline` on the demo checkpoint."""
    checkpoint = demo_models / "checkpoints/demo.safetensors"
    return plain_diffusers(checkpoint, "sd1", tmp_path_factory.mktemp("sd1"))


@pytest.fixture(scope="module")
def img2img(txt2img: Any) -> Any:
    """`StableDiffusionImg2ImgPipeline` of the same components."""
    pipeline: Any = StableDiffusionImg2ImgPipeline(
        **txt2img.components, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(pipeline: Any, scheduler: Any = EULER, **arguments: Any) -> Any:
    """Output of plain diffusers: an image, or latents if requested."""
    pipeline.scheduler = scheduler
    settings: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": 7.0,
        "generator": seeded(),
        **arguments,
    }
    if not isinstance(pipeline, StableDiffusionImg2ImgPipeline):
        settings = {"width": 128, "height": 128, **settings}
    call: Any = pipeline
    images = call(**settings).images
    return images if settings.get("output_type") == "latent" else images[0]


def reference_img2img(
    pipeline: Any, start: Image.Image | torch.Tensor, executed: int, **fields: Any
) -> Any:
    """Output of plain diffusers' img2img from an image, or from latents, in so many steps.

    From the mode of the VAE's posterior, as ours: sampling it would consume the noise's numbers.
    """
    if isinstance(start, Image.Image):
        pixels = torch.from_numpy(np.array(start)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            mode = pipeline.vae.encode(pixels).latent_dist.mode()
        start = mode * pipeline.vae.config.scaling_factor
    steps = fields.get("num_inference_steps", STEPS)
    return reference(pipeline, image=start, strength=min(1.0, (executed + 0.01) / steps), **fields)


def request(**fields: object) -> GenerateRequest:
    """A small request; the fields replace its own."""
    settings: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "seed": SEED,
        **fields,
    }
    return GenerateRequest(**settings)


def render(fleet: TestFleet, request: GenerateRequest | UpscaleRequest) -> Image.Image:
    [image] = submit(fleet, request).images(TIMEOUT_S)
    return image


def submit(fleet: TestFleet, request: GenerateRequest | UpscaleRequest) -> Job:
    if isinstance(request, GenerateRequest):
        return fleet.client.generate(request)
    return fleet.client.upscale(request)


def difference(ours: Image.Image, theirs: Image.Image) -> int:
    """Largest difference of any channel of any pixel, of 255."""
    assert ours.size == theirs.size
    largest = int(np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max())
    print(f"largest difference: {largest}/255")
    return largest


def photo(width: int, height: int) -> Image.Image:
    """A smooth, coloured image."""
    coarse = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def enlarged(models: Path, name: str, image: Image.Image) -> Image.Image:
    """Output of the network itself for the whole image."""
    network: Any = ModelLoader("cpu").load_from_file(models / f"upscalers/{name}.safetensors")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        result: torch.Tensor = network.eval()(pixels)
    array = (result.clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0)
    return Image.fromarray(array.numpy())


def parameters(content: bytes) -> str:
    text = read_parameters(content)
    assert text is not None
    return text


LINSPACE = {"timestep_spacing": "linspace"}
KARRAS = LINSPACE | {"use_karras_sigmas": True}
SOLVERS: list[tuple[SchedulerName, SigmaSchedule, type, Mapping[str, Any]]] = [
    ("euler", "normal", EulerDiscreteScheduler, LINSPACE),
    ("euler", "karras", EulerDiscreteScheduler, KARRAS),
    ("dpmpp_2m", "karras", DPMSolverMultistepScheduler, KARRAS),
    ("heun", "normal", HeunDiscreteScheduler, LINSPACE),
]


@pytest.mark.parametrize(("name", "sigmas", "scheduler", "arguments"), SOLVERS)
def test_txt2img_equals_plain_diffusers(
    fleet: TestFleet,
    txt2img: Any,
    name: SchedulerName,
    sigmas: SigmaSchedule,
    scheduler: type,
    arguments: Mapping[str, Any],
) -> None:
    ours = render(fleet, request(scheduler=name, sigma_schedule=sigmas))
    assert difference(ours, reference(txt2img, scheduler(**BETAS, **arguments))) <= 1


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"guidance_scale": 1}, {"guidance_scale": 1.0}),
        ({"guidance_scale": 12.5}, {"guidance_scale": 12.5}),
        ({"negative_prompt": ""}, {"negative_prompt": None}),
        ({"prompt": ""}, {"prompt": ""}),
        ({"width": 192, "height": 64}, {"width": 192, "height": 64}),
    ],
    ids=str,
)
def test_settings_mean_what_they_mean_to_diffusers(
    fleet: TestFleet, txt2img: Any, fields: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    assert difference(render(fleet, request(**fields)), reference(txt2img, **arguments)) <= 1


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_skips_layers_for_prompt_and_negative_prompt(
    fleet: TestFleet, txt2img: Any, clip_skip: int
) -> None:
    """As in A1111.

    Diffusers encodes the negative with all layers, whatever clip_skip is, and with transformers 5
    its own clip_skip ends in an AttributeError; hence by hand.
    """

    def encoded(text: str) -> torch.Tensor:
        tokens = txt2img.tokenizer(text, padding="max_length", return_tensors="pt")
        with torch.no_grad():
            output = txt2img.text_encoder(tokens.input_ids, output_hidden_states=True)
            return txt2img.text_encoder.final_layer_norm(output.hidden_states[-1 - clip_skip])

    embeds = {"prompt_embeds": encoded(PROMPT), "negative_prompt_embeds": encoded(NEGATIVE)}
    theirs = reference(txt2img, prompt=None, negative_prompt=None, **embeds)
    assert difference(render(fleet, request(clip_skip=clip_skip)), theirs) <= 1


def test_each_image_of_a_batch_equals_the_image_generated_alone(
    fleet: TestFleet, txt2img: Any
) -> None:
    job = submit(fleet, request(num_images=3))
    images = job.images(TIMEOUT_S)
    assert [image.seed for image in job.result().images] == [SEED, SEED + 1, SEED + 2]
    for index, ours in enumerate(images):
        alone = render(fleet, request(seed=SEED + index))
        assert difference(ours, alone) <= 1
        assert difference(ours, reference(txt2img, generator=seeded(SEED + index))) <= 1
    assert difference(images[0], images[1]) > 1


@pytest.mark.parametrize(("strength", "executed"), [(0.35, 3), (0.5, 4), (1.0, 6)])
def test_img2img_equals_plain_diffusers_with_one_step_more(
    fleet: TestFleet, img2img: Any, strength: float, executed: int
) -> None:
    """A1111 executes int(steps x strength) + 1 steps, diffusers one less."""
    start = photo(128, 96)
    ours = render(fleet, request(image=fleet.client.put_image(start), strength=strength))
    assert difference(ours, reference_img2img(img2img, start, executed)) <= 1


def test_img2img_of_another_size_starts_from_the_image_resized_by_lanczos(
    fleet: TestFleet, img2img: Any
) -> None:
    start = photo(101, 83)
    small_request = request(image=fleet.client.put_image(start), strength=0.5)
    resized = start.resize((96, 80), Image.Resampling.LANCZOS)
    assert (
        difference(render(fleet, small_request), reference_img2img(img2img, resized, executed=4))
        <= 1
    )


def test_sdxl_equals_plain_diffusers(fleet: TestFleet, demo_models: Path, tmp_path: Path) -> None:
    checkpoint = demo_models / "checkpoints/demo-xl.safetensors"
    pipeline = plain_diffusers(checkpoint, "sdxl", tmp_path)
    for fields, arguments in (
        ({"negative_prompt": ""}, {"negative_prompt": None}),
        ({}, {}),
        ({"width": 192, "height": 64}, {"width": 192, "height": 64}),
        # As A1111, which ignores clip skip for SDXL.
        ({"clip_skip": 1, "guidance_scale": 1}, {"guidance_scale": 1.0}),
    ):
        ours = render(fleet, request(checkpoint="demo-xl", **fields))
        assert difference(ours, reference(pipeline, **arguments)) <= 1, fields


HiresUpscaler = Literal["latent", "lanczos", "demo-x2"]


@pytest.mark.parametrize("upscaler", ["latent", "lanczos", "demo-x2"])
def test_a_hires_pass_is_img2img_on_the_stretched_schedule(
    fleet: TestFleet, txt2img: Any, img2img: Any, demo_models: Path, upscaler: HiresUpscaler
) -> None:
    """7 steps executed at strength 0.7 are the last 7 of 10 scheduled, as in A1111."""
    if upscaler == "latent":
        latents = reference(txt2img, output_type="latent")
        start: Any = interpolate(latents, size=(24, 24), mode="bilinear")
    else:
        start = reference(txt2img)
        if upscaler == "demo-x2":
            start = enlarged(demo_models, upscaler, start)
        start = start.resize((192, 192), Image.Resampling.LANCZOS)
    theirs = reference_img2img(img2img, start, executed=7, num_inference_steps=10)

    hires = HiresPass(scale=1.5, upscaler=upscaler, num_inference_steps=7, strength=0.7)
    ours = render(fleet, request(hires=hires))
    assert difference(ours, theirs) <= 1


def test_a_hires_pass_executes_exactly_the_requested_steps(fleet: TestFleet) -> None:
    hires = HiresPass(width=256, height=192, num_inference_steps=30, strength=0.3)
    job = submit(fleet, request(hires=hires))
    seen = {
        progress.stage: progress.steps
        for progress in job.events(TIMEOUT_S)
        if progress.stage in ("denoise", "hires")
    }
    assert seen["hires"] == 30
    result = job.result()
    assert (result.images[0].width, result.images[0].height) == (256, 192)
    assert {"denoise", "hires"} <= result.timings.stages_s.keys()


def test_hires_takes_as_many_steps_as_the_first_pass_by_default(fleet: TestFleet) -> None:
    result = submit(fleet, request(hires=HiresPass(scale=1.5))).result(TIMEOUT_S)
    assert isinstance(result.request, GenerateRequest)
    assert result.request.hires is not None
    assert result.request.hires.num_inference_steps == STEPS


def test_events_have_the_stages_in_order_and_end_with_success(fleet: TestFleet) -> None:
    events = list(submit(fleet, request(num_inference_steps=60)).events(TIMEOUT_S))
    stages = ["queued", "load", "text", "denoise", "decode", "store", "done"]
    scheduled = max(index for index, event in enumerate(events) if event.stage == "queued")
    assert {event.stage for event in events[:scheduled]} <= {"queued", "load"}
    order = [(stages.index(event.stage), event.step) for event in events[scheduled:]]
    assert order == sorted(order)
    assert any(event.stage == "denoise" and event.steps == 60 for event in events)
    assert [event for event in events if event.status.ended] == [events[-1]]
    assert events[-1].status is JobStatus.SUCCEEDED
    assert events[-1].stage == "done"


def test_the_result_has_what_the_worker_decided(fleet: TestFleet) -> None:
    result = submit(fleet, GenerateRequest(prompt="x", num_inference_steps=1)).result(TIMEOUT_S)
    assert isinstance(result.request, GenerateRequest)
    decided = result.request
    assert (decided.checkpoint, decided.width, decided.height) == ("demo", 128, 128)
    assert decided.seed == result.images[0].seed
    [worker] = fleet.client.workers()
    assert (result.worker, result.attempt) == (worker.name, 1)


def test_an_upscale_of_a_small_image_equals_the_network_itself(
    fleet: TestFleet, demo_models: Path
) -> None:
    start = photo(96, 80)
    key = fleet.client.put_image(start)
    ours = render(fleet, UpscaleRequest(images=(key,), upscaler="demo-x2", scale=2))
    assert difference(ours, enlarged(demo_models, "demo-x2", start)) <= 1


def test_tiles_are_invisible(fleet: TestFleet, demo_models: Path) -> None:
    """300x260 is four tiles of 192; at the seams they differ no more than elsewhere.

    SwinIR pads the whole image to its grid of 8, the tiles need no padding: the outermost two input
    pixels may differ.
    """
    start = photo(300, 260)
    key = fleet.client.put_image(start)
    ours = render(fleet, UpscaleRequest(images=(key,), upscaler="demo-x2", scale=2))
    whole = enlarged(demo_models, "demo-x2", start)
    inner = (4, 4, 596, 516)
    assert difference(ours.crop(inner), whole.crop(inner)) <= 2


@pytest.mark.parametrize("upscaler", ["demo-x2", "demo-x4", "lanczos"])
@pytest.mark.parametrize("scale", [1.5, 3])
def test_any_factor_gives_exactly_the_requested_size(
    fleet: TestFleet, upscaler: str, scale: float
) -> None:
    key = fleet.client.put_image(photo(50, 34))
    ours = render(fleet, UpscaleRequest(images=(key,), upscaler=upscaler, scale=scale))
    assert ours.size == (50 * scale, 34 * scale)


def test_a_generated_image_can_be_upscaled_in_the_same_job(
    fleet: TestFleet, txt2img: Any, demo_models: Path
) -> None:
    ours = render(fleet, request(upscale=UpscalePass(upscaler="demo-x4", scale=4)))
    assert difference(ours, enlarged(demo_models, "demo-x4", reference(txt2img))) <= 1


def test_a_png_has_its_generation_parameters(fleet: TestFleet, demo_models: Path) -> None:
    small_request = request(scheduler="dpmpp_2m", sigma_schedule="karras", clip_skip=1)
    [content] = submit(fleet, small_request).files(TIMEOUT_S)
    with Image.open(BytesIO(content)) as image:
        text = image.info["parameters"]
    digest = sha256((demo_models / "checkpoints/demo.safetensors").read_bytes()).hexdigest()
    prompt, negative, settings = text.split("\n")
    assert prompt == PROMPT
    assert negative == f"Negative prompt: {NEGATIVE}"
    assert settings.startswith(
        f"Steps: {STEPS}, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: {SEED}, "
        f"Size: 128x128, Model hash: {digest[:10]}, Model: demo, Clip skip: 2"
    )


def test_an_upscaled_image_keeps_its_generation_parameters(fleet: TestFleet) -> None:
    [content] = submit(fleet, request()).files(TIMEOUT_S)
    key = fleet.client.put_image(content)
    [large] = submit(fleet, UpscaleRequest(images=(key,), scale=2)).files(TIMEOUT_S)
    assert parameters(large) == (
        f"{parameters(content)}, Postprocess upscale by: 2, Postprocess upscaler: Lanczos"
    )


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_jpeg_and_webp_have_the_same_image_and_text(
    fleet: TestFleet, output_format: ImageFormat
) -> None:
    png, other = (submit(fleet, request(output_format=name)) for name in ("png", output_format))
    [content] = other.files(TIMEOUT_S)
    [file] = other.result().images
    assert file.format == output_format
    assert file.key.endswith(f".{output_format}")
    assert parameters(content) == parameters(png.files(TIMEOUT_S)[0])
    [exact], [lossy] = png.images(), other.images()
    assert lossy.format == output_format.upper()
    expected = BytesIO()
    exact.save(expected, output_format, quality=95)
    assert difference(lossy, Image.open(expected)) <= 1


def test_the_files_are_where_the_result_says(fleet: TestFleet) -> None:
    job = submit(fleet, request(num_images=2))
    contents = job.files(TIMEOUT_S)
    s3 = boto3.client(
        "s3",
        endpoint_url=fleet.environment["IMAGEFLEET_S3_ENDPOINT_URL"],
        aws_access_key_id=fleet.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=fleet.environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    for image, content in zip(job.result().images, contents, strict=True):
        url = urlsplit(image.url)
        stored = s3.get_object(Bucket=url.netloc, Key=url.path[1:])
        assert stored["ContentType"] == "image/png"
        assert stored["Body"].read() == content
        assert (image.size_bytes, image.sha256) == (len(content), sha256(content).hexdigest())
    s3.close()


def test_presigned_urls_work_over_plain_http(fleet: TestFleet) -> None:
    job = submit(fleet, request())
    [url] = job.urls(TIMEOUT_S, expires_s=60)
    with urllib.request.urlopen(url, timeout=10) as response:
        assert response.headers["Content-Type"] == "image/png"
        assert [response.read()] == job.files()


def test_a_job_can_be_read_in_another_process(fleet: TestFleet) -> None:
    job = submit(fleet, request())
    script = (
        "import sys; from imagefleet_producer import Client; "
        "print(Client().job(sys.argv[1]).result(60).model_dump_json())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, job.id],
        env=child_environment(fleet.environment),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert done.stdout.strip() == job.result().model_dump_json()


def test_unknown_ids_are_not_found_rather_than_queued(fleet: TestFleet) -> None:
    job = fleet.client.job("never-was")
    for ask in (job.status, job.progress, job.result, job.cancel, job.images, job.urls):
        with pytest.raises(JobNotFound, match="never-was"):
            ask()
    with pytest.raises(JobNotFound):
        next(iter(job.events()))


def test_a_canceled_job_ends_and_leaves_the_worker_warm(fleet: TestFleet) -> None:
    job = submit(fleet, request(num_inference_steps=150, width=512, height=512))
    running: list[Progress] = []
    for progress in job.events(TIMEOUT_S):
        if progress.stage == "denoise" and not running:
            job.cancel()
            running.append(progress)
    assert running
    assert job.status() is JobStatus.CANCELED
    assert submit(fleet, request()).result(TIMEOUT_S).timings.stages_s["load"] < 1
