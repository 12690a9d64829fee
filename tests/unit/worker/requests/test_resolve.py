"""What a request leaves open is decided, and what cannot be done is refused, before the device."""

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
def make(demo_models: Path, store: FileStore) -> MakeResolver:
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


def drawing(resolver: Resolver, job_id: str = "job", /, **fields: object) -> ResolvedGenerate:
    wanted: dict[str, Any] = {"prompt": "fox", **fields}
    resolved = resolver.resolve(record(GenerateRequest(**wanted), job_id))
    assert isinstance(resolved, ResolvedGenerate)
    return resolved


def put(store: FileStore, width: int, height: int) -> ImageRef:
    file = BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    key = f"inputs/{width}x{height}.png"
    store.put_new(key, file.getvalue(), "image/png")
    return ImageRef(key=key)


def test_a_bare_prompt_gets_the_workers_checkpoint_and_its_native_size(make: MakeResolver) -> None:
    job = drawing(make())
    assert (job.pass_inputs.checkpoint.name, job.width, job.height) == ("demo", 128, 128)
    decided = (job.request.checkpoint, job.request.width, job.request.height)
    assert decided == ("demo", 128, 128)
    assert (job.initial_image, job.hires, job.upscale) == (None, None, None)


def test_what_was_asked_for_stays(make: MakeResolver) -> None:
    job = drawing(make(), checkpoint="demo-xl", width=64, height=256, seed=5)
    assert (job.pass_inputs.checkpoint.name, job.width, job.height) == ("demo-xl", 64, 256)
    assert job.seeds.seeds == (5,)


def test_the_only_checkpoint_is_the_default_and_of_several_none(
    make: MakeResolver, store: FileStore, demo_models: Path, tmp_path: Path
) -> None:
    several = make(default_checkpoint=None)
    assert several.default_checkpoint() is None
    with pytest.raises(UnknownCheckpoint, match=r"no default.*known: demo, demo-xl"):
        drawing(several)
    (tmp_path / "checkpoints").mkdir()
    only = (demo_models / "checkpoints/demo.safetensors").read_bytes()
    (tmp_path / "checkpoints/only.safetensors").write_bytes(only)
    settings = WorkerSettings(models_dir=tmp_path)
    assert Resolver(settings, ModelStore(tmp_path), store).default_checkpoint() == "only"


def test_a_checkpoint_beside_two_of_one_name_is_no_default(
    make: MakeResolver, store: FileStore, demo_models: Path, tmp_path: Path
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
        drawing(resolver)


def test_a_checkpoint_that_cannot_be_read_for_a_moment_still_counts(
    make: MakeResolver, store: FileStore, demo_models: Path, tmp_path: Path
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

    assert [file.name for file in models.listed("checkpoint")] == ["only"]
    assert resolver.default_checkpoint() is None
    with pytest.raises(FileUnavailable, match=r"turbo/model_index\.json cannot be read"):
        drawing(resolver)

    (turbo / "model_index.json").unlink()
    (turbo / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert [file.name for file in models.listed("checkpoint")] == ["only", "turbo"]


def test_seeds_count_up_from_the_first(make: MakeResolver) -> None:
    assert drawing(make(), seed=7, num_images=3).seeds.seeds == (7, 8, 9)


def test_a_seed_left_open_is_the_same_on_every_attempt(make: MakeResolver) -> None:
    first, again = drawing(make(), "a"), drawing(make(), "a")
    assert first.seeds.seeds == again.seeds.seeds == (first.request.seed,)
    assert drawing(make(), "b").seeds != first.seeds


def test_a_decided_request_may_be_sent_again(make: MakeResolver) -> None:
    """The result shows it so that a picture can be asked for once more."""
    job = drawing(make(), hires=HiresPass(scale=2), num_images=2)
    text = job.request.model_dump_json()
    again = drawing(make(), **json.loads(text))
    assert again.request == job.request
    assert again.seeds == job.seeds


@pytest.mark.parametrize(
    ("given", "taken"), [((100, 90), (96, 88)), ((64, 64), (64, 64)), ((70, 20), (64, 64))]
)
def test_img2img_takes_the_pictures_size_rounded_down(
    make: MakeResolver, store: FileStore, given: tuple[int, int], taken: tuple[int, int]
) -> None:
    job = drawing(make(), image=put(store, *given))
    assert job.initial_image is not None
    assert (job.width, job.height) == taken == job.initial_image.image.size
    assert job.request.strength == 0.75


def test_hires_by_scale_rounds_down_and_runs_the_first_passs_steps(make: MakeResolver) -> None:
    job = drawing(make(), num_inference_steps=9, hires=HiresPass(scale=1.49))
    assert job.hires is not None
    assert (job.hires.size.width, job.hires.size.height, job.hires.step_plan.executed) == (
        184,
        184,
        9,
    )


def test_a_size_that_no_request_may_have_is_no_pictures_either(
    make: MakeResolver, store: FileStore
) -> None:
    """It was drawn, stored and called a success, and its result could never be read."""
    with pytest.raises(InvalidRequest, match=r"width: .*8192, given 8400"):
        drawing(make(), image=put(store, 8400, 64))


def test_hires_by_size_and_with_its_own_steps(make: MakeResolver) -> None:
    hires = HiresPass(width=256, height=192, num_inference_steps=3, upscaler="demo-x2")
    job = drawing(make(), hires=hires)
    assert job.hires is not None
    assert (job.hires.size.width, job.hires.size.height, job.hires.step_plan.executed) == (
        256,
        192,
        3,
    )


def test_limits_are_exact(make: MakeResolver) -> None:
    drawing(make(), width=512, height=512)
    with pytest.raises(UnsupportedSize, match=f"picture 512x520 .* at most {512 * 512}"):
        drawing(make(), width=512, height=520)
    with pytest.raises(UnsupportedSize, match="hires picture 1024x1024"):
        drawing(make(), width=512, height=512, hires=HiresPass(scale=2))
    drawing(make(), width=512, height=512, upscale=UpscalePass(scale=2))
    with pytest.raises(UnsupportedSize, match="upscaled picture 1075x1075"):
        drawing(make(), width=512, height=512, upscale=UpscalePass(scale=2.1))
    with pytest.raises(UnsupportedSize, match="upscaled picture 1536x1536"):
        drawing(make(), hires=HiresPass(scale=4), upscale=UpscalePass(scale=3))


def test_where_only_a_region_is_drawn_the_whole_picture_is_enlarged(
    make: MakeResolver, store: FileStore
) -> None:
    mask = BytesIO()
    white = Image.new("L", (600, 600))
    white.paste(255, (10, 10, 80, 80))
    white.save(mask, "PNG")
    store.put_new("inputs/mask.png", mask.getvalue(), "image/png")
    fields: dict[str, Any] = {
        "image": put(store, 600, 600),
        "inpaint": {"mask_image": {"key": "inputs/mask.png"}, "only_masked": True},
        **{"width": 64, "height": 64},
    }
    drawing(make(), **fields, upscale=UpscalePass(scale=1.5))
    with pytest.raises(UnsupportedSize, match="upscaled picture 1200x1200"):
        drawing(make(), **fields, upscale=UpscalePass(scale=2))


def test_unknown_names_are_refused_with_those_that_are_known(make: MakeResolver) -> None:
    with pytest.raises(UnknownCheckpoint, match="'fox'; known: demo, demo-xl"):
        drawing(make(), checkpoint="fox")
    for fields in (
        {"upscale": UpscalePass(scale=2, upscaler="fox")},
        {"hires": HiresPass(scale=1.5, upscaler="fox")},
    ):
        with pytest.raises(UnknownUpscaler, match="'fox'; known: demo-x2, demo-x4"):
            drawing(make(), **fields)


def test_a_picture_that_is_not_there_is_refused(make: MakeResolver) -> None:
    with pytest.raises(InvalidRequest, match=r"'inputs/gone\.png' is not in the store"):
        drawing(make(), image=ImageRef(key="inputs/gone.png"))


def test_a_picture_larger_than_allowed_is_refused_unread(
    make: MakeResolver, store: FileStore
) -> None:
    with pytest.raises(UnsupportedSize, match="1032x1024"):
        drawing(make(), image=put(store, 1032, 1024))


def test_a_picture_that_is_none_is_refused(make: MakeResolver, store: FileStore) -> None:
    store.put_new("inputs/x.png", b"GIF89a", "image/png")
    with pytest.raises(InvalidImage, match="allowed are PNG, JPEG and WebP"):
        drawing(make(), image=ImageRef(key="inputs/x.png"))


def test_a_prompt_is_measured_in_tokens(make: MakeResolver) -> None:
    drawing(make(max_prompt_tokens=80), prompt="fox " * 80)
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(PromptTooLong, match="81 tokens; at most 80"):
            drawing(make(max_prompt_tokens=80), **{field: "fox " * 81})


def test_an_upscale_job_has_its_picture(make: MakeResolver, store: FileStore) -> None:
    request = UpscaleRequest(images=(put(store, 33, 21),), upscaler="demo-x2", scale=3)
    job = make().resolve(record(request))
    assert isinstance(job, UpscaleJob)
    assert job.decode(0).picture.image.size == (33, 21)
    assert job.decode(0).picture.parameters is None


def test_a_text_too_long_for_a_jpeg_is_refused_before_the_upscale(
    make: MakeResolver, store: FileStore
) -> None:
    """It failed at the encoder, after the work on the device. The upscale adds its own words."""
    for length in (32_600, 32_700, 33_000):
        content = encode_image(Image.new("RGB", (8, 8)), "png", "x" * length)
        store.put_new(f"inputs/{length}.png", content, "image/png")

    def resolve(length: int, **fields: Any) -> None:  # noqa: ANN401
        image = ImageRef(key=f"inputs/{length}.png")
        request = UpscaleRequest(images=(put(store, 8, 8), image), scale=2, **fields)
        make().resolve(record(request))

    resolve(32_600, output_format="jpeg")
    resolve(33_000)
    for length in (32_700, 33_000):
        with pytest.raises(InvalidRequest, match=r"images\[1\]: a JPEG holds at most 65533 bytes"):
            resolve(length, output_format="jpeg")


def test_prompts_too_long_for_a_jpeg_are_refused_before_the_drawing(make: MakeResolver) -> None:
    """They failed at the encoder, after the work on the device."""
    long = "a fox" + " " * 16_500 + "in snow"
    prompts = {"prompt": long, "negative_prompt": long}
    resolver = make()
    drawing(resolver, **prompts, output_format="png")
    drawing(resolver, prompt=long, output_format="jpeg")
    with pytest.raises(InvalidRequest, match="a JPEG holds at most 65533 bytes of parameters"):
        drawing(resolver, **prompts, output_format="jpeg")


def test_pictures_of_a_request_are_limited_together(make: MakeResolver, store: FileStore) -> None:
    """The files of all of them lie in memory until the last one is done."""
    large, small = put(store, 512, 512), put(store, 32, 32)
    make().resolve(record(UpscaleRequest(images=(large,) * 4, scale=2)))
    make().resolve(record(UpscaleRequest(images=(small,) * 64, scale=4)))
    limit = 4 * 1024 * 1024
    too_much = f"images.0. to images.4., .* have {limit + 64 * 64} pixels .* {limit} are"
    with pytest.raises(TooManyPixels, match=too_much):
        make().resolve(record(UpscaleRequest(images=(*[large] * 4, small), scale=2)))
    # Made smaller, they count as they came.
    many = UpscaleRequest(images=(large,) * 17, width=16)
    with pytest.raises(TooManyPixels, match=f"have {17 * 512 * 512} pixels"):
        make().resolve(record(many))


def test_drawn_pictures_are_limited_together_too(make: MakeResolver) -> None:
    enlarged: dict[str, Any] = {"width": 512, "height": 512, "upscale": UpscalePass(scale=2)}
    drawing(make(), num_images=4, **enlarged)
    with pytest.raises(TooManyPixels, match=f"upscaled pictures have {5 * 1024 * 1024} pixels"):
        drawing(make(), num_images=5, **enlarged)


def test_whole_pictures_round_what_is_drawn_are_limited_together(
    make: MakeResolver, store: FileStore
) -> None:
    """Without an upscale nobody counted them: sixteen of the largest picture were accepted."""
    mask = BytesIO()
    Image.new("L", (1024, 1024), 255).save(mask, "PNG")
    store.put_new("inputs/mask.png", mask.getvalue(), "image/png")
    inpaint = {"mask_image": {"key": "inputs/mask.png"}, "only_masked": True}
    region = {"image": put(store, 1024, 1024), "inpaint": inpaint, "width": 64, "height": 64}
    drawing(make(), num_images=4, **region)
    with pytest.raises(TooManyPixels, match=f"pictures have {5 * 1024 * 1024} pixels"):
        drawing(make(), num_images=5, **region)


def test_an_upscale_beyond_the_limit_is_refused(make: MakeResolver, store: FileStore) -> None:
    request = UpscaleRequest(images=(put(store, 512, 512),), scale=2.5)
    with pytest.raises(UnsupportedSize, match="upscaled picture 1280x1280"):
        make().resolve(record(request))


@pytest.mark.parametrize(
    ("output_format", "longest", "others"), [("jpeg", 65_500, "png"), ("webp", 16_383, "png, jpeg")]
)
def test_an_upscale_too_long_for_its_files_format_is_refused(
    make: MakeResolver, store: FileStore, output_format: str, longest: int, others: str
) -> None:
    """It failed at the encoder, after the work on the device, as the operator's fault."""
    fields: dict[str, Any] = {"images": (put(store, 1, 8192),), "output_format": output_format}
    make().resolve(record(UpscaleRequest(**fields, height=longest)))
    refusal = rf"images\[0\]: upscaled picture \d+x{longest + 1} .* {output_format}.* {longest} .*"
    with pytest.raises(InvalidRequest, match=refusal + others):
        make().resolve(record(UpscaleRequest(**fields, height=longest + 1)))


def test_a_drawn_picture_is_measured_against_its_files_format_at_its_last_size(
    make: MakeResolver, store: FileStore
) -> None:
    resolver = make(max_pixels=2048 * 2048, max_output_pixels=2048 * 2048)
    mask = BytesIO()
    Image.new("L", (16_384, 64), 255).save(mask, "PNG")
    store.put_new("inputs/mask.png", mask.getvalue(), "image/png")
    inpaint = {"mask_image": {"key": "inputs/mask.png"}, "only_masked": True}
    region = {"image": put(store, 16_384, 64), "inpaint": inpaint, "width": 64, "height": 64}
    for fields, what in (
        ({"width": 8192, "height": 64, "hires": HiresPass(scale=2)}, "picture 16384x128"),
        ({"width": 8192, "height": 64, "upscale": UpscalePass(scale=2)}, "upscaled picture 16384x"),
        (region, "picture 16384x64"),
    ):
        drawing(resolver, **fields)
        with pytest.raises(InvalidRequest, match=what):
            drawing(resolver, **fields, output_format="webp")
    cut = UpscalePass(width=8192, height=128)
    drawing(resolver, width=8192, height=64, upscale=cut, output_format="webp")
