"""Preparing images and masks for img2img, and applying the overlay to generated pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import MaskFill, ResizeMode
from imagefleet_shared.request_parts import HiresPass, ImageRef, Inpaint
from imagefleet_worker.imaging.hires_size import HiresSize, hires_size
from imagefleet_worker.inpaint.fill import fill_masked
from imagefleet_worker.inpaint.fit import fit
from imagefleet_worker.inpaint.mask import blur_mask
from imagefleet_worker.inpaint.prepare import PreparedImage, prepare_image, prepare_inpaint

RESIZE_MODES: tuple[ResizeMode, ...] = (
    "just_resize",
    "crop_and_resize",
    "resize_and_fill",
    "latent",
)
Box = tuple[int, int, int, int]
GENERATED_COLOUR = (255, 0, 255)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def block(width: int, height: int, *boxes: Box) -> Image.Image:
    mask = Image.new("L", (width, height))
    for box in boxes:
        mask.paste(255, box)
    return mask


def inpaint_options(
    mask_blur: int = 0,
    invert: bool = False,
    fill: MaskFill = "original",
    only_masked: bool = False,
    padding: int = 32,
) -> Inpaint:
    return Inpaint(
        mask_image=ImageRef(key="inputs/mask.png"),
        mask_blur=mask_blur,
        invert=invert,
        fill=fill,
        only_masked=only_masked,
        padding=padding,
    )


def prepare(
    picture: Image.Image,
    mask: Image.Image,
    inpaint: Inpaint,
    size: tuple[int, int] | None = None,
    resize_mode: ResizeMode = "just_resize",
    hires: HiresSize | None = None,
) -> PreparedImage:
    return prepare_inpaint(
        picture, mask, inpaint, *(size or picture.size), resize_mode=resize_mode, hires=hires
    )


def values(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def differs(one: Image.Image, other: Image.Image) -> NDArray[np.bool_]:
    return (values(one) != values(other)).any(axis=-1)


@pytest.mark.parametrize("mode", ["just_resize", "crop_and_resize", "resize_and_fill"])
def test_without_a_mask_the_picture_is_fitted_and_the_result_is_unchanged(
    mode: ResizeMode,
) -> None:
    prepared = prepare_image(noise(50, 70), 64, 72, mode)
    assert prepared.image.tobytes() == fit(noise(50, 70), 64, 72, mode).tobytes()
    assert (prepared.latent_mask, prepared.hires_mask, prepared.fill) == (None, None, "original")
    generated = noise(64, 72, 1)
    assert prepared.apply_overlay(generated) is generated


def test_with_resize_mode_latent_the_image_keeps_its_size() -> None:
    assert prepare_image(noise(50, 70), 512, 512, "latent").image.size == (48, 64)


def test_without_blur_exactly_the_white_pixels_are_repainted() -> None:
    picture, mask = noise(96, 64), block(96, 64, (33, 7, 59, 41))
    prepared = prepare(picture, mask, inpaint_options())
    assert prepared.image.tobytes() == picture.tobytes()
    generated = noise(96, 64, 1)
    expected = np.where(values(mask)[..., None] > 0, values(generated), values(picture))
    np.testing.assert_array_equal(values(prepared.apply_overlay(generated)), expected)


def test_the_latent_mask_covers_the_white_area() -> None:
    prepared = prepare(noise(96, 64), block(96, 64, (32, 8, 64, 40)), inpaint_options())
    expected = torch.zeros(1, 1, 8, 12)
    expected[..., 1:5, 4:8] = 1
    assert prepared.latent_mask is not None
    assert torch.equal(prepared.latent_mask, expected)


def test_invert_repaints_the_rest() -> None:
    picture, mask = noise(96, 64), block(96, 64, (32, 8, 64, 40))
    plain, inverted = (prepare(picture, mask, inpaint_options(invert=i)) for i in (False, True))
    assert plain.latent_mask is not None
    assert inverted.latent_mask is not None
    assert torch.equal(inverted.latent_mask, 1 - plain.latent_mask)
    generated = noise(96, 64, 1)
    changed = differs(inverted.apply_overlay(generated), picture)
    np.testing.assert_array_equal(changed, (values(mask) == 0) & differs(generated, picture))


def test_blur_blends_at_the_edge_and_keeps_the_rest() -> None:
    """The generated picture is opaque from half of the mask's range on: A1111 doubles it."""
    picture, mask = noise(96, 64), block(96, 64, (32, 16, 64, 48))
    generated = noise(96, 64, 1)
    result = prepare(picture, mask, inpaint_options(mask_blur=4)).apply_overlay(generated)
    soft = values(blur_mask(mask, 4))
    np.testing.assert_array_equal(values(result)[soft == 0], values(picture)[soft == 0])
    np.testing.assert_array_equal(values(result)[soft >= 128], values(generated)[soft >= 128])
    weight = np.minimum(255, 2 * soft.astype(float))[..., None] / 255
    mixed = weight * values(generated) + (1 - weight) * values(picture)
    # Nearly transparent colours have few significant bits, but also little weight.
    assert np.abs(values(result) - mixed).max() < 2


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corner=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    extent=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    blur=st.integers(0, 8),
    padding=st.integers(0, 40),
)
def test_only_masked_changes_no_unmasked_pixel_of_any_picture(
    size: tuple[int, int],
    corner: tuple[float, float],
    extent: tuple[int, int],
    blur: int,
    padding: int,
) -> None:
    left, top = int(corner[0] * size[0]), int(corner[1] * size[1])
    mask = block(*size, (left, top, left + extent[0], top + extent[1]))
    picture = noise(*size)
    try:
        prepared = prepare(
            picture, mask, inpaint_options(blur, only_masked=True, padding=padding), (64, 72)
        )
    except InvalidRequest:
        reject()  # the mask is too thin, or nothing of it is left after the blur
    result = prepared.apply_overlay(Image.new("RGB", (64, 72), GENERATED_COLOUR))
    assert result.size == size
    outside = values(blur_mask(mask, blur)) == 0
    np.testing.assert_array_equal(values(result)[outside], values(picture)[outside])
    white = values(blur_mask(mask, blur)) == 255
    assert (values(result)[white] == GENERATED_COLOUR).all()


def test_only_masked_prepares_the_region_at_the_full_size() -> None:
    picture, mask = noise(200, 100), block(200, 100, (92, 42, 108, 58))
    prepared = prepare(picture, mask, inpaint_options(only_masked=True, padding=8), (64, 64))
    assert prepared.region == (84, 34, 116, 66)
    region = picture.crop((84, 34, 116, 66)).resize((64, 64), Image.Resampling.LANCZOS)
    assert prepared.image.tobytes() == region.tobytes()
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 2:6, 2:6] = 1
    assert prepared.latent_mask is not None
    assert torch.equal(prepared.latent_mask, expected)
    changed = differs(prepared.apply_overlay(Image.new("RGB", (64, 64), GENERATED_COLOUR)), picture)
    np.testing.assert_array_equal(changed, values(mask) > 0)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_only_masked_returns_a_picture_of_the_original_size(mode: ResizeMode) -> None:
    picture, mask = noise(333, 517), block(333, 517, (0, 460, 333, 517))
    prepared = prepare(picture, mask, inpaint_options(only_masked=True), (64, 64), mode)
    assert prepared.image.size == (64, 64)
    assert prepared.apply_overlay(noise(64, 64, 1)).size == (333, 517)


def test_with_only_masked_a_single_white_pixel_is_enough() -> None:
    picture, mask = noise(65, 33), block(65, 33, (64, 32, 65, 33))
    prepared = prepare(picture, mask, inpaint_options(only_masked=True, padding=0), (64, 64))
    assert prepared.latent_mask is not None
    assert prepared.latent_mask.all()
    changed = differs(prepared.apply_overlay(Image.new("RGB", (64, 64), GENERATED_COLOUR)), picture)
    assert np.argwhere(changed).tolist() == [[32, 64]]


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize(
    ("mask", "invert", "message"),
    [
        (Image.new("L", (64, 64), 0), False, "mask_image is all black"),
        (Image.new("L", (64, 64), 255), True, "mask_image is all white and invert is set"),
    ],
)
def test_a_mask_with_nothing_to_repaint_is_refused(
    mask: Image.Image, invert: bool, message: str, only_masked: bool
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        prepare(noise(64, 64), mask, inpaint_options(invert=invert, only_masked=only_masked))


@pytest.mark.parametrize(
    "inpaint", [inpaint_options(), inpaint_options(mask_blur=64, only_masked=True)]
)
def test_a_mask_of_which_no_latent_is_left_is_refused(inpaint: Inpaint) -> None:
    with pytest.raises(
        InvalidRequest, match=f"too little .* 64x64 with mask_blur {inpaint.mask_blur}"
    ):
        prepare(noise(64, 64), block(64, 64, (9, 9, 10, 10)), inpaint)


def test_a_mask_that_is_cropped_away_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="too little"):
        prepare(
            noise(200, 64),
            block(200, 64, (0, 0, 30, 64)),
            inpaint_options(),
            (64, 64),
            "crop_and_resize",
        )


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_the_mask_is_fitted_like_the_picture(mode: ResizeMode) -> None:
    """Masks a white square in the picture: the result is repainted where the square is fitted."""
    picture = Image.new("RGB", (200, 120), (0, 0, 0))
    box = (60, 20, 140, 100)
    picture.paste((255, 255, 255), box)
    prepared = prepare(picture, block(200, 120, box), inpaint_options(), (128, 128), mode)
    target: ResizeMode = "just_resize" if mode == "latent" else mode
    fitted = values(fit(picture, 128, 128, target))[..., 0]
    result = values(prepared.apply_overlay(Image.new("RGB", (128, 128), GENERATED_COLOUR)))
    assert (result[fitted == 255] == GENERATED_COLOUR).all()
    assert (result[fitted == 0] == 0).all()


def test_a_mask_of_another_resolution_is_stretched_to_the_picture() -> None:
    picture = noise(128, 64)
    for only_masked in (False, True):
        prepared = prepare(
            picture, block(64, 32, (8, 8, 24, 16)), inpaint_options(only_masked=only_masked)
        )
        result = prepared.apply_overlay(Image.new("RGB", (128, 64), GENERATED_COLOUR))
        # Lanczos overshoots a little at the edges.
        assert np.abs(values(result)[18:30, 18:46].astype(int) - GENERATED_COLOUR).max() < 16
        assert not differs(result, picture)[40:].any()


@pytest.mark.parametrize("fill", ["fill", "latent_noise", "latent_nothing"])
@pytest.mark.parametrize("only_masked", [False, True])
def test_fill_modes_other_than_original_fill_the_image_before_encoding(
    fill: MaskFill, only_masked: bool
) -> None:
    picture, mask = noise(64, 64), block(64, 64, (16, 16, 48, 48))
    inpaint = inpaint_options(fill=fill, only_masked=only_masked, padding=16)
    prepared = prepare(picture, mask, inpaint)
    assert prepared.fill == fill
    assert prepared.image.tobytes() == fill_masked(picture, mask).tobytes()
    # The overlay is the original picture, not the filled one.
    result = prepared.apply_overlay(noise(64, 64, 1))
    assert not differs(result, picture)[values(mask) == 0].any()


def test_the_fill_is_cropped_with_the_picture() -> None:
    picture, mask = noise(128, 64), block(128, 64, (40, 0, 80, 64))
    image = prepare(picture, mask, inpaint_options(fill="fill"), (64, 64), "crop_and_resize").image
    centre = (32, 0, 96, 64)
    assert image.tobytes() == fill_masked(picture.crop(centre), mask.crop(centre)).tobytes()


def test_a_region_that_cannot_reach_the_aspect_ratio_is_not_distorted() -> None:
    """40 pixels wide in a job of 2:1: its edges are extended for the model, and cropped again."""
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    picture = Image.fromarray(np.tile(ramp[None, :, None], (200, 1, 3)))
    inpaint = inpaint_options(only_masked=True, padding=0)
    prepared = prepare(picture, block(40, 200, (0, 60, 40, 120)), inpaint, (256, 128))
    assert prepared.region == (0, 60, 40, 120)
    round_trip = values(prepared.apply_overlay(prepared.image)).astype(int)
    assert np.abs(round_trip - values(picture)).max() < 8


def test_outpainting_is_a_larger_size_with_a_masked_border() -> None:
    """The mask has the target's aspect ratio, so only the picture is extended at its sides."""
    picture = noise(64, 64)
    mask = block(128, 64, (0, 0, 32, 64), (96, 0, 128, 64))
    prepared = prepare(picture, mask, inpaint_options(fill="fill"), (128, 64), "resize_and_fill")
    assert prepared.image.size == (128, 64)
    expected = torch.ones(1, 1, 8, 16)
    expected[..., 4:12] = 0
    assert prepared.latent_mask is not None
    assert torch.equal(prepared.latent_mask, expected)
    result = values(prepared.apply_overlay(Image.new("RGB", (128, 64), GENERATED_COLOUR)))
    np.testing.assert_array_equal(result[:, 32:96], values(picture))
    assert (result[:, :32] == GENERATED_COLOUR).all()
    assert (result[:, 96:] == GENERATED_COLOUR).all()


def test_the_mask_applies_to_the_hires_pass_and_its_picture() -> None:
    picture, mask = noise(128, 128), block(128, 128, (32, 32, 64, 96))
    hires = hires_size(64, 64, HiresPass(scale=2))
    prepared = prepare(picture, mask, inpaint_options(), (64, 64), hires=hires)
    assert prepared.latent_mask is not None
    assert prepared.hires_mask is not None
    assert prepared.latent_mask.shape == (1, 1, 8, 8)
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., 4:12, 4:8] = 1
    assert torch.equal(prepared.hires_mask, expected)
    # The overlay has the original's pixels, not those of the smaller first pass.
    generated = noise(128, 128, 1)
    changed = differs(prepared.apply_overlay(generated), picture)
    np.testing.assert_array_equal(changed, (values(mask) > 0) & differs(generated, picture))


def test_a_hires_pass_crops_the_overlay_like_the_generated_picture() -> None:
    picture, mask = noise(128, 128), block(128, 128, (32, 32, 64, 96))
    hires = hires_size(64, 64, HiresPass(width=128, height=64))
    prepared = prepare(picture, mask, inpaint_options(), (64, 64), hires=hires)
    result = prepared.apply_overlay(Image.new("RGB", (128, 64), GENERATED_COLOUR))
    expected = values(picture)[32:96].copy()
    expected[:, 32:64] = GENERATED_COLOUR
    np.testing.assert_array_equal(values(result), expected)


def test_only_masked_pastes_a_hires_picture_into_its_region() -> None:
    picture, mask = noise(200, 100), block(200, 100, (90, 40, 110, 60))
    hires = hires_size(64, 64, HiresPass(scale=1.5))
    prepared = prepare(picture, mask, inpaint_options(only_masked=True), (64, 64), hires=hires)
    assert prepared.hires_mask is not None
    assert prepared.hires_mask.shape == (1, 1, 12, 12)
    result = prepared.apply_overlay(Image.new("RGB", (96, 96), GENERATED_COLOUR))
    assert (values(result)[40:60, 90:110] == GENERATED_COLOUR).all()
    assert not differs(result, picture)[values(mask) == 0].any()


def test_only_masked_with_a_hires_pass_that_crops_is_refused() -> None:
    hires = hires_size(64, 64, HiresPass(width=128, height=64))
    with pytest.raises(InvalidRequest, match="128x128 to 128x64"):
        prepare(
            noise(64, 64),
            block(64, 64, (0, 0, 9, 9)),
            inpaint_options(only_masked=True),
            hires=hires,
        )


def test_prepared_images_are_compared_by_identity() -> None:
    """PIL images cannot be hashed, and jobs of a batch may have different ones."""
    one, other = (prepare_image(noise(64, 64), 64, 64, "just_resize") for _ in range(2))
    assert one != other
    assert len({one, other}) == 2
