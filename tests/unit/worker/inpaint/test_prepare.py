"""From a picture and a mask to what is encoded, and from what was drawn back to a picture."""

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
from imagefleet_worker.inpaint.mask import blurred
from imagefleet_worker.inpaint.prepare import PreparedImage, prepare_image, prepare_inpaint

RESIZE_MODES: tuple[ResizeMode, ...] = (
    "just_resize",
    "crop_and_resize",
    "resize_and_fill",
    "latent",
)
Box = tuple[int, int, int, int]
DRAWN = (255, 0, 255)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def block(width: int, height: int, *boxes: Box) -> Image.Image:
    mask = Image.new("L", (width, height))
    for box in boxes:
        mask.paste(255, box)
    return mask


def asked(
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
def test_without_a_mask_the_picture_is_fitted_and_the_result_stays_as_drawn(
    mode: ResizeMode,
) -> None:
    prepared = prepare_image(noise(50, 70), 64, 72, mode)
    assert prepared.image.tobytes() == fit(noise(50, 70), 64, 72, mode).tobytes()
    assert (prepared.latent_mask, prepared.hires_mask, prepared.fill) == (None, None, "original")
    drawn = noise(64, 72, 1)
    assert prepared.overlay_kept(drawn) is drawn


def test_what_is_stretched_as_latents_keeps_its_size() -> None:
    assert prepare_image(noise(50, 70), 512, 512, "latent").image.size == (48, 64)


def test_without_blur_exactly_the_white_pixels_are_drawn() -> None:
    picture, mask = noise(96, 64), block(96, 64, (33, 7, 59, 41))
    prepared = prepare(picture, mask, asked())
    assert prepared.image.tobytes() == picture.tobytes()
    drawn = noise(96, 64, 1)
    expected = np.where(values(mask)[..., None] > 0, values(drawn), values(picture))
    np.testing.assert_array_equal(values(prepared.overlay_kept(drawn)), expected)


def test_the_latents_under_the_mask_are_drawn() -> None:
    prepared = prepare(noise(96, 64), block(96, 64, (32, 8, 64, 40)), asked())
    expected = torch.zeros(1, 1, 8, 12)
    expected[..., 1:5, 4:8] = 1
    assert prepared.latent_mask is not None
    assert torch.equal(prepared.latent_mask, expected)


def test_invert_draws_the_rest() -> None:
    picture, mask = noise(96, 64), block(96, 64, (32, 8, 64, 40))
    plain, inverted = (prepare(picture, mask, asked(invert=i)) for i in (False, True))
    assert plain.latent_mask is not None
    assert inverted.latent_mask is not None
    assert torch.equal(inverted.latent_mask, 1 - plain.latent_mask)
    drawn = noise(96, 64, 1)
    kept = differs(inverted.overlay_kept(drawn), picture)
    np.testing.assert_array_equal(kept, (values(mask) == 0) & differs(drawn, picture))


def test_blur_mixes_at_the_edge_and_leaves_the_rest() -> None:
    """Half of the mask is enough for the picture to be the drawn one: A1111 doubles it there."""
    picture, mask = noise(96, 64), block(96, 64, (32, 16, 64, 48))
    drawn = noise(96, 64, 1)
    result = prepare(picture, mask, asked(mask_blur=4)).overlay_kept(drawn)
    soft = values(blurred(mask, 4))
    np.testing.assert_array_equal(values(result)[soft == 0], values(picture)[soft == 0])
    np.testing.assert_array_equal(values(result)[soft >= 128], values(drawn)[soft >= 128])
    weight = np.minimum(255, 2 * soft.astype(float))[..., None] / 255
    mixed = weight * values(drawn) + (1 - weight) * values(picture)
    # What is nearly gone is kept in few of 8 bits; it weighs as little.
    assert np.abs(values(result) - mixed).max() < 2


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corner=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    extent=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    blur=st.integers(0, 8),
    padding=st.integers(0, 40),
)
def test_only_masked_leaves_every_other_byte_of_any_picture(
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
        prepared = prepare(picture, mask, asked(blur, only_masked=True, padding=padding), (64, 72))
    except InvalidRequest:
        reject()  # too thin a line, or a blur that leaves nothing of it
    result = prepared.overlay_kept(Image.new("RGB", (64, 72), DRAWN))
    assert result.size == size
    outside = values(blurred(mask, blur)) == 0
    np.testing.assert_array_equal(values(result)[outside], values(picture)[outside])
    white = values(blurred(mask, blur)) == 255
    assert (values(result)[white] == DRAWN).all()


def test_only_masked_draws_the_region_at_the_full_size() -> None:
    picture, mask = noise(200, 100), block(200, 100, (92, 42, 108, 58))
    prepared = prepare(picture, mask, asked(only_masked=True, padding=8), (64, 64))
    assert prepared.region == (84, 34, 116, 66)
    region = picture.crop((84, 34, 116, 66)).resize((64, 64), Image.Resampling.LANCZOS)
    assert prepared.image.tobytes() == region.tobytes()
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 2:6, 2:6] = 1
    assert prepared.latent_mask is not None
    assert torch.equal(prepared.latent_mask, expected)
    changed = differs(prepared.overlay_kept(Image.new("RGB", (64, 64), DRAWN)), picture)
    np.testing.assert_array_equal(changed, values(mask) > 0)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_only_masked_gives_a_big_picture_back_at_its_own_size(mode: ResizeMode) -> None:
    picture, mask = noise(333, 517), block(333, 517, (0, 460, 333, 517))
    prepared = prepare(picture, mask, asked(only_masked=True), (64, 64), mode)
    assert prepared.image.size == (64, 64)
    assert prepared.overlay_kept(noise(64, 64, 1)).size == (333, 517)


def test_one_white_pixel_is_enough_where_only_it_is_drawn() -> None:
    picture, mask = noise(65, 33), block(65, 33, (64, 32, 65, 33))
    prepared = prepare(picture, mask, asked(only_masked=True, padding=0), (64, 64))
    assert prepared.latent_mask is not None
    assert prepared.latent_mask.all()
    changed = differs(prepared.overlay_kept(Image.new("RGB", (64, 64), DRAWN)), picture)
    assert np.argwhere(changed).tolist() == [[32, 64]]


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize(
    ("mask", "invert", "message"),
    [
        (Image.new("L", (64, 64), 0), False, "mask_image is all black"),
        (Image.new("L", (64, 64), 255), True, "mask_image is all white and invert is set"),
    ],
)
def test_a_mask_with_nothing_to_draw_is_refused(
    mask: Image.Image, invert: bool, message: str, only_masked: bool
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        prepare(noise(64, 64), mask, asked(invert=invert, only_masked=only_masked))


@pytest.mark.parametrize("inpaint", [asked(), asked(mask_blur=64, only_masked=True)])
def test_a_mask_of_which_nothing_is_left_is_refused(inpaint: Inpaint) -> None:
    with pytest.raises(
        InvalidRequest, match=f"too little .* 64x64 with mask_blur {inpaint.mask_blur}"
    ):
        prepare(noise(64, 64), block(64, 64, (9, 9, 10, 10)), inpaint)


def test_a_mask_that_is_cut_away_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="too little"):
        prepare(
            noise(200, 64), block(200, 64, (0, 0, 30, 64)), asked(), (64, 64), "crop_and_resize"
        )


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_the_mask_goes_with_the_picture(mode: ResizeMode) -> None:
    """A square painted in the picture: where it comes to lie, and only there, is drawn."""
    picture = Image.new("RGB", (200, 120), (0, 0, 0))
    box = (60, 20, 140, 100)
    picture.paste((255, 255, 255), box)
    prepared = prepare(picture, block(200, 120, box), asked(), (128, 128), mode)
    target: ResizeMode = "just_resize" if mode == "latent" else mode
    painted = values(fit(picture, 128, 128, target))[..., 0]
    result = values(prepared.overlay_kept(Image.new("RGB", (128, 128), DRAWN)))
    assert (result[painted == 255] == DRAWN).all()
    assert (result[painted == 0] == 0).all()


def test_a_mask_of_another_resolution_is_stretched_to_the_picture() -> None:
    picture = noise(128, 64)
    for only_masked in (False, True):
        prepared = prepare(picture, block(64, 32, (8, 8, 24, 16)), asked(only_masked=only_masked))
        result = prepared.overlay_kept(Image.new("RGB", (128, 64), DRAWN))
        # Lanczos rings a little inside of the edges.
        assert np.abs(values(result)[18:30, 18:46].astype(int) - DRAWN).max() < 16
        assert not differs(result, picture)[40:].any()


@pytest.mark.parametrize("fill", ["fill", "latent_noise", "latent_nothing"])
@pytest.mark.parametrize("only_masked", [False, True])
def test_other_fills_draw_the_surroundings_in_before_the_encoder(
    fill: MaskFill, only_masked: bool
) -> None:
    picture, mask = noise(64, 64), block(64, 64, (16, 16, 48, 48))
    inpaint = asked(fill=fill, only_masked=only_masked, padding=16)
    prepared = prepare(picture, mask, inpaint)
    assert prepared.fill == fill
    assert prepared.image.tobytes() == fill_masked(picture, mask).tobytes()
    # What stays is still the picture, not what was filled in.
    result = prepared.overlay_kept(noise(64, 64, 1))
    assert not differs(result, picture)[values(mask) == 0].any()


def test_the_fill_is_cut_with_the_picture() -> None:
    picture, mask = noise(128, 64), block(128, 64, (40, 0, 80, 64))
    image = prepare(picture, mask, asked(fill="fill"), (64, 64), "crop_and_resize").image
    middle = (32, 0, 96, 64)
    assert image.tobytes() == fill_masked(picture.crop(middle), mask.crop(middle)).tobytes()


def test_a_region_without_room_for_the_proportions_comes_back_undistorted() -> None:
    """40 pixels wide in a job of 2:1: its edges are drawn out for the model, and cut off again."""
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    picture = Image.fromarray(np.tile(ramp[None, :, None], (200, 1, 3)))
    inpaint = asked(only_masked=True, padding=0)
    prepared = prepare(picture, block(40, 200, (0, 60, 40, 120)), inpaint, (256, 128))
    assert prepared.region == (0, 60, 40, 120)
    as_encoded = values(prepared.overlay_kept(prepared.image)).astype(int)
    assert np.abs(as_encoded - values(picture)).max() < 8


def test_outpainting_is_a_larger_canvas_with_its_border_masked() -> None:
    """The mask has the canvas's proportions, so only the picture is drawn out at its sides."""
    picture = noise(64, 64)
    mask = block(128, 64, (0, 0, 32, 64), (96, 0, 128, 64))
    prepared = prepare(picture, mask, asked(fill="fill"), (128, 64), "resize_and_fill")
    assert prepared.image.size == (128, 64)
    expected = torch.ones(1, 1, 8, 16)
    expected[..., 4:12] = 0
    assert prepared.latent_mask is not None
    assert torch.equal(prepared.latent_mask, expected)
    result = values(prepared.overlay_kept(Image.new("RGB", (128, 64), DRAWN)))
    np.testing.assert_array_equal(result[:, 32:96], values(picture))
    assert (result[:, :32] == DRAWN).all()
    assert (result[:, 96:] == DRAWN).all()


def test_the_mask_holds_in_the_hires_pass_and_its_picture() -> None:
    picture, mask = noise(128, 128), block(128, 128, (32, 32, 64, 96))
    hires = hires_size(64, 64, HiresPass(scale=2))
    prepared = prepare(picture, mask, asked(), (64, 64), hires=hires)
    assert prepared.latent_mask is not None
    assert prepared.hires_mask is not None
    assert prepared.latent_mask.shape == (1, 1, 8, 8)
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., 4:12, 4:8] = 1
    assert torch.equal(prepared.hires_mask, expected)
    # As large as the picture given: its own pixels, not those of the first pass, come back.
    drawn = noise(128, 128, 1)
    changed = differs(prepared.overlay_kept(drawn), picture)
    np.testing.assert_array_equal(changed, (values(mask) > 0) & differs(drawn, picture))


def test_hires_cuts_what_stays_as_it_cuts_what_is_drawn() -> None:
    picture, mask = noise(128, 128), block(128, 128, (32, 32, 64, 96))
    hires = hires_size(64, 64, HiresPass(width=128, height=64))
    prepared = prepare(picture, mask, asked(), (64, 64), hires=hires)
    result = prepared.overlay_kept(Image.new("RGB", (128, 64), DRAWN))
    expected = values(picture)[32:96].copy()
    expected[:, 32:64] = DRAWN
    np.testing.assert_array_equal(values(result), expected)


def test_only_masked_lays_a_hires_picture_into_its_region() -> None:
    picture, mask = noise(200, 100), block(200, 100, (90, 40, 110, 60))
    hires = hires_size(64, 64, HiresPass(scale=1.5))
    prepared = prepare(picture, mask, asked(only_masked=True), (64, 64), hires=hires)
    assert prepared.hires_mask is not None
    assert prepared.hires_mask.shape == (1, 1, 12, 12)
    result = prepared.overlay_kept(Image.new("RGB", (96, 96), DRAWN))
    assert (values(result)[40:60, 90:110] == DRAWN).all()
    assert not differs(result, picture)[values(mask) == 0].any()


def test_only_masked_with_a_hires_that_cuts_is_refused() -> None:
    hires = hires_size(64, 64, HiresPass(width=128, height=64))
    with pytest.raises(InvalidRequest, match="128x128 to 128x64"):
        prepare(noise(64, 64), block(64, 64, (0, 0, 9, 9)), asked(only_masked=True), hires=hires)


def test_prepared_pictures_are_compared_by_identity() -> None:
    """Images cannot be hashed, and batches may differ in them."""
    one, other = (prepare_image(noise(64, 64), 64, 64, "just_resize") for _ in range(2))
    assert one != other
    assert len({one, other}) == 2
