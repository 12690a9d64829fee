"""Requests are resolved with defaults, and invalid ones rejected, before the device is used."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagefleet_shared.errors import (
    FileUnavailable,
    InvalidImage,
    InvalidRequest,
    PromptTooLong,
    TooManyPixels,
    UnknownCheckpoint,
    UnknownUpscaler,
    UnsupportedSize,
    WorkerFailure,
)
from imagefleet_shared.image_files import encode_image
from imagefleet_shared.request_parts import HiresPass, ImageRef, UpscalePass
from imagefleet_shared.requests import GenerateRequest, UpscaleRequest
from imagefleet_shared.storage import FileStore
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.requests.resolve import Resolver
from imagefleet_worker.requests.resolved import ResolvedGenerate, UpscaleJob
from imagefleet_worker.settings import WorkerSettings
from tests.jobs import record

MakeResolver = Callable[..., Resolver]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def make_resolver(demo_models: Path, store: FileStore) -> MakeResolver:
    """A resolver over the demo's models; settings replace the defaults."""

    def make(**settings: object) -> Resolver:
        values: dict[str, Any] = {
            "models_dir": demo_models,
            "default_checkpoint": "demo",
            "max_pixels": 512 * 512,
            "max_output_pixels": 1024 * 1024,
            **settings,
        }
        return Resolver(WorkerSettings(**values), ModelStore(demo_models), store)

    return make


def resolve(resolver: Resolver, job_id: str = "job", /, **fields: object) -> ResolvedGenerate:
    request_fields: dict[str, Any] = {"prompt": "fox", **fields}
    resolved = resolver.resolve(record(GenerateRequest(**request_fields), job_id))
    assert isinstance(resolved, ResolvedGenerate)
    return resolved


def upload(store: FileStore, width: int, height: int) -> ImageRef:
    file = BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    key = f"inputs/{width}x{height}.png"
    store.put_new(key, file.getvalue(), "image/png")
    return ImageRef(key=key)


def test_a_prompt_alone_gets_the_workers_checkpoint_and_its_native_size(
    make_resolver: MakeResolver,
) -> None:
    job = resolve(make_resolver())
    assert (job.pass_inputs.checkpoint.name, job.width, job.height) == ("demo", 128, 128)
    defaults = (job.request.checkpoint, job.request.width, job.request.height)
    assert defaults == ("demo", 128, 128)
    assert (job.initial_image, job.hires, job.upscale) == (None, None, None)


def test_requested_values_are_not_changed(make_resolver: MakeResolver) -> None:
    job = resolve(make_resolver(), checkpoint="demo-xl", width=64, height=256, seed=5)
    assert (job.pass_inputs.checkpoint.name, job.width, job.height) == ("demo-xl", 64, 256)
    assert job.seeds.seeds == (5,)


def test_the_only_checkpoint_is_the_default_and_of_several_none(
    make_resolver: MakeResolver, store: FileStore, demo_models: Path, tmp_path: Path
) -> None:
    several = make_resolver(default_checkpoint=None)
    assert several.default_checkpoint() is None
    with pytest.raises(UnknownCheckpoint, match=r"no default.*known: demo, demo-xl"):
        resolve(several)
    (tmp_path / "checkpoints").mkdir()
    only = (demo_models / "checkpoints/demo.safetensors").read_bytes()
    (tmp_path / "checkpoints/only.safetensors").write_bytes(only)
    settings = WorkerSettings(models_dir=tmp_path)
    assert Resolver(settings, ModelStore(tmp_path), store).default_checkpoint() == "only"


def test_a_checkpoint_beside_two_of_one_name_is_no_default(
    make_resolver: MakeResolver, store: FileStore, demo_models: Path, tmp_path: Path
) -> None:
    """It became the default when the other was copied into a second folder."""
    content = (demo_models / "checkpoints/demo.safetensors").read_bytes()
    for name in ("one", "twice", "sub/twice"):
        path = tmp_path / f"checkpoints/{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    resolver = Resolver(WorkerSettings(models_dir=tmp_path), ModelStore(tmp_path), store)

    assert resolver.default_checkpoint() is None
    with pytest.raises(WorkerFailure, match="several checkpoints are named 'twice'"):
        resolve(resolver)


def test_a_checkpoint_that_cannot_be_read_for_a_moment_still_counts(
    make_resolver: MakeResolver, store: FileStore, demo_models: Path, tmp_path: Path
) -> None:
    """It was left out until the worker was started again, and another became the default."""
    turbo = tmp_path / "checkpoints/turbo"
    (turbo / "unet").mkdir(parents=True)
    (turbo / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    # Nobody can read what lies at address 0: the read fails, as on a disk that has trouble.
    (turbo / "model_index.json").symlink_to("/proc/self/mem")
    content = (demo_models / "checkpoints/demo.safetensors").read_bytes()
    (tmp_path / "checkpoints/only.safetensors").write_bytes(content)
    models = ModelStore(tmp_path)
    resolver = Resolver(WorkerSettings(models_dir=tmp_path), models, store)

    assert [file.name for file in models.list_models("checkpoint")] == ["only"]
    assert resolver.default_checkpoint() is None
    with pytest.raises(FileUnavailable, match=r"turbo/model_index\.json cannot be read"):
        resolve(resolver)

    (turbo / "model_index.json").unlink()
    (turbo / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert [file.name for file in models.list_models("checkpoint")] == ["only", "turbo"]


def test_seeds_count_up_from_the_first(make_resolver: MakeResolver) -> None:
    assert resolve(make_resolver(), seed=7, num_images=3).seeds.seeds == (7, 8, 9)


def test_a_default_seed_is_the_same_on_every_attempt(make_resolver: MakeResolver) -> None:
    first, again = resolve(make_resolver(), "a"), resolve(make_resolver(), "a")
    assert first.seeds.seeds == again.seeds.seeds == (first.request.seed,)
    assert resolve(make_resolver(), "b").seeds != first.seeds


def test_a_resolved_request_may_be_sent_again(make_resolver: MakeResolver) -> None:
    """The result contains it so that a picture can be requested again."""
    job = resolve(make_resolver(), hires=HiresPass(scale=2), num_images=2)
    text = job.request.model_dump_json()
    again = resolve(make_resolver(), **json.loads(text))
    assert again.request == job.request
    assert again.seeds == job.seeds


@pytest.mark.parametrize(
    ("source", "expected"), [((100, 90), (96, 88)), ((64, 64), (64, 64)), ((70, 20), (64, 64))]
)
def test_img2img_takes_the_pictures_size_rounded_down(
    make_resolver: MakeResolver,
    store: FileStore,
    source: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    job = resolve(make_resolver(), image=upload(store, *source))
    assert job.initial_image is not None
    assert (job.width, job.height) == expected == job.initial_image.image.size
    assert job.request.strength == 0.75


def test_hires_by_scale_rounds_down_and_runs_the_first_passs_steps(
    make_resolver: MakeResolver,
) -> None:
    job = resolve(make_resolver(), num_inference_steps=9, hires=HiresPass(scale=1.49))
    assert job.hires is not None
    assert (job.hires.size.width, job.hires.size.height, job.hires.step_plan.executed) == (
        184,
        184,
        9,
    )


def test_an_initial_image_larger_than_any_request_allows_is_refused(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    """It was rendered, stored and reported as a success, and its result could never be parsed."""
    with pytest.raises(InvalidRequest, match=r"width: .*8192, given 8400"):
        resolve(make_resolver(), image=upload(store, 8400, 64))


def test_hires_by_size_and_with_its_own_steps(make_resolver: MakeResolver) -> None:
    hires = HiresPass(width=256, height=192, num_inference_steps=3, upscaler="demo-x2")
    job = resolve(make_resolver(), hires=hires)
    assert job.hires is not None
    assert (job.hires.size.width, job.hires.size.height, job.hires.step_plan.executed) == (
        256,
        192,
        3,
    )


def test_limits_are_exact(make_resolver: MakeResolver) -> None:
    resolve(make_resolver(), width=512, height=512)
    with pytest.raises(UnsupportedSize, match=f"picture 512x520 .* at most {512 * 512}"):
        resolve(make_resolver(), width=512, height=520)
    with pytest.raises(UnsupportedSize, match="hires picture 1024x1024"):
        resolve(make_resolver(), width=512, height=512, hires=HiresPass(scale=2))
    resolve(make_resolver(), width=512, height=512, upscale=UpscalePass(scale=2))
    with pytest.raises(UnsupportedSize, match="upscaled picture 1075x1075"):
        resolve(make_resolver(), width=512, height=512, upscale=UpscalePass(scale=2.1))
    with pytest.raises(UnsupportedSize, match="upscaled picture 1536x1536"):
        resolve(make_resolver(), hires=HiresPass(scale=4), upscale=UpscalePass(scale=3))


def test_with_only_masked_the_upscale_is_checked_at_the_whole_pictures_size(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    mask = BytesIO()
    white = Image.new("L", (600, 600))
    white.paste(255, (10, 10, 80, 80))
    white.save(mask, "PNG")
    store.put_new("inputs/mask.png", mask.getvalue(), "image/png")
    fields: dict[str, Any] = {
        "image": upload(store, 600, 600),
        "inpaint": {"mask_image": {"key": "inputs/mask.png"}, "only_masked": True},
        **{"width": 64, "height": 64},
    }
    resolve(make_resolver(), **fields, upscale=UpscalePass(scale=1.5))
    with pytest.raises(UnsupportedSize, match="upscaled picture 1200x1200"):
        resolve(make_resolver(), **fields, upscale=UpscalePass(scale=2))


def test_unknown_names_are_refused_with_a_list_of_known_ones(make_resolver: MakeResolver) -> None:
    with pytest.raises(UnknownCheckpoint, match="'fox'; known: demo, demo-xl"):
        resolve(make_resolver(), checkpoint="fox")
    for fields in (
        {"upscale": UpscalePass(scale=2, upscaler="fox")},
        {"hires": HiresPass(scale=1.5, upscaler="fox")},
    ):
        with pytest.raises(UnknownUpscaler, match="'fox'; known: demo-x2, demo-x4"):
            resolve(make_resolver(), **fields)


def test_a_missing_input_image_is_refused(make_resolver: MakeResolver) -> None:
    with pytest.raises(InvalidRequest, match=r"'inputs/gone\.png' is not in the store"):
        resolve(make_resolver(), image=ImageRef(key="inputs/gone.png"))


def test_an_input_image_larger_than_allowed_is_refused(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    with pytest.raises(UnsupportedSize, match="1032x1024"):
        resolve(make_resolver(), image=upload(store, 1032, 1024))


def test_an_input_that_is_no_image_is_refused(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    store.put_new("inputs/x.png", b"GIF89a", "image/png")
    with pytest.raises(InvalidImage, match="allowed are PNG, JPEG and WebP"):
        resolve(make_resolver(), image=ImageRef(key="inputs/x.png"))


def test_a_prompts_length_is_limited_in_tokens(make_resolver: MakeResolver) -> None:
    resolve(make_resolver(max_prompt_tokens=80), prompt="fox " * 80)
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(PromptTooLong, match="81 tokens; at most 80"):
            resolve(make_resolver(max_prompt_tokens=80), **{field: "fox " * 81})


def test_an_upscale_job_decodes_its_input(make_resolver: MakeResolver, store: FileStore) -> None:
    request = UpscaleRequest(images=(upload(store, 33, 21),), upscaler="demo-x2", scale=3)
    job = make_resolver().resolve(record(request))
    assert isinstance(job, UpscaleJob)
    assert job.decode(0).picture.image.size == (33, 21)
    assert job.decode(0).picture.parameters is None


def test_a_text_too_long_for_a_jpeg_is_refused_before_the_upscale(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    """It failed when encoding, after rendering. The upscale adds its own text to the infotext."""
    for length in (32_600, 32_700, 33_000):
        content = encode_image(Image.new("RGB", (8, 8)), "png", "x" * length)
        store.put_new(f"inputs/{length}.png", content, "image/png")

    def resolve_upscale(length: int, **fields: Any) -> None:  # noqa: ANN401
        image = ImageRef(key=f"inputs/{length}.png")
        request = UpscaleRequest(images=(upload(store, 8, 8), image), scale=2, **fields)
        make_resolver().resolve(record(request))

    resolve_upscale(32_600, output_format="jpeg")
    resolve_upscale(33_000)
    for length in (32_700, 33_000):
        with pytest.raises(InvalidRequest, match=r"images\[1\]: a JPEG holds at most 65533 bytes"):
            resolve_upscale(length, output_format="jpeg")


def test_prompts_too_long_for_a_jpeg_are_refused_before_rendering(
    make_resolver: MakeResolver,
) -> None:
    """They failed when encoding, after rendering."""
    long = "a fox" + " " * 16_500 + "in snow"
    prompts = {"prompt": long, "negative_prompt": long}
    resolver = make_resolver()
    resolve(resolver, **prompts, output_format="png")
    resolve(resolver, prompt=long, output_format="jpeg")
    with pytest.raises(InvalidRequest, match="a JPEG holds at most 65533 bytes of parameters"):
        resolve(resolver, **prompts, output_format="jpeg")


def test_pictures_of_a_request_are_limited_together(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    """All of their files stay in memory until the last one is done."""
    large, small = upload(store, 512, 512), upload(store, 32, 32)
    make_resolver().resolve(record(UpscaleRequest(images=(large,) * 4, scale=2)))
    make_resolver().resolve(record(UpscaleRequest(images=(small,) * 64, scale=4)))
    limit = 4 * 1024 * 1024
    too_much = f"images.0. to images.4., .* have {limit + 64 * 64} pixels .* {limit} are"
    with pytest.raises(TooManyPixels, match=too_much):
        make_resolver().resolve(record(UpscaleRequest(images=(*[large] * 4, small), scale=2)))
    # Downscaled pictures count with their input size.
    many = UpscaleRequest(images=(large,) * 17, width=16)
    with pytest.raises(TooManyPixels, match=f"have {17 * 512 * 512} pixels"):
        make_resolver().resolve(record(many))


def test_generated_pictures_are_limited_together_too(make_resolver: MakeResolver) -> None:
    upscaled: dict[str, Any] = {"width": 512, "height": 512, "upscale": UpscalePass(scale=2)}
    resolve(make_resolver(), num_images=4, **upscaled)
    with pytest.raises(TooManyPixels, match=f"upscaled pictures have {5 * 1024 * 1024} pixels"):
        resolve(make_resolver(), num_images=5, **upscaled)


def test_with_only_masked_whole_pictures_are_limited_together(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    """Without an upscale they were not counted: sixteen of the largest picture were accepted."""
    mask = BytesIO()
    Image.new("L", (1024, 1024), 255).save(mask, "PNG")
    store.put_new("inputs/mask.png", mask.getvalue(), "image/png")
    inpaint = {"mask_image": {"key": "inputs/mask.png"}, "only_masked": True}
    region = {"image": upload(store, 1024, 1024), "inpaint": inpaint, "width": 64, "height": 64}
    resolve(make_resolver(), num_images=4, **region)
    with pytest.raises(TooManyPixels, match=f"pictures have {5 * 1024 * 1024} pixels"):
        resolve(make_resolver(), num_images=5, **region)


def test_an_upscale_beyond_the_limit_is_refused(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    request = UpscaleRequest(images=(upload(store, 512, 512),), scale=2.5)
    with pytest.raises(UnsupportedSize, match="upscaled picture 1280x1280"):
        make_resolver().resolve(record(request))


@pytest.mark.parametrize(
    ("output_format", "longest", "others"), [("jpeg", 65_500, "png"), ("webp", 16_383, "png, jpeg")]
)
def test_an_upscale_too_long_for_its_files_format_is_refused(
    make_resolver: MakeResolver, store: FileStore, output_format: str, longest: int, others: str
) -> None:
    """It failed when encoding, after rendering, with an error blaming the operator."""
    fields: dict[str, Any] = {"images": (upload(store, 1, 8192),), "output_format": output_format}
    make_resolver().resolve(record(UpscaleRequest(**fields, height=longest)))
    refusal = rf"images\[0\]: upscaled picture \d+x{longest + 1} .* {output_format}.* {longest} .*"
    with pytest.raises(InvalidRequest, match=refusal + others):
        make_resolver().resolve(record(UpscaleRequest(**fields, height=longest + 1)))


def test_a_generated_pictures_final_size_is_checked_against_its_file_format(
    make_resolver: MakeResolver, store: FileStore
) -> None:
    resolver = make_resolver(max_pixels=2048 * 2048, max_output_pixels=2048 * 2048)
    mask = BytesIO()
    Image.new("L", (16_384, 64), 255).save(mask, "PNG")
    store.put_new("inputs/mask.png", mask.getvalue(), "image/png")
    inpaint = {"mask_image": {"key": "inputs/mask.png"}, "only_masked": True}
    region = {"image": upload(store, 16_384, 64), "inpaint": inpaint, "width": 64, "height": 64}
    for fields, what in (
        ({"width": 8192, "height": 64, "hires": HiresPass(scale=2)}, "picture 16384x128"),
        ({"width": 8192, "height": 64, "upscale": UpscalePass(scale=2)}, "upscaled picture 16384x"),
        (region, "picture 16384x64"),
    ):
        resolve(resolver, **fields)
        with pytest.raises(InvalidRequest, match=what):
            resolve(resolver, **fields, output_format="webp")
    cut = UpscalePass(width=8192, height=128)
    resolve(resolver, width=8192, height=64, upscale=cut, output_format="webp")
