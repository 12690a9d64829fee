"""Preparing the initial image and its mask for img2img; needs no model."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import MaskFill, ResizeMode
from imagefleet_shared.request_parts import Inpaint
from imagefleet_worker.imaging.convert import resize
from imagefleet_worker.imaging.hires_size import HiresSize
from imagefleet_worker.inpaint.fill import erase_masked, fill_masked
from imagefleet_worker.inpaint.fit import crop_to_multiple_of_8, fit
from imagefleet_worker.inpaint.mask import blur_mask, to_latent_mask, to_mask
from imagefleet_worker.inpaint.region import Box, masked_region


# Compared by identity: jobs of a batch may have different images and masks.
@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedImage:
    """The input of img2img, and the overlay that is applied to its result."""

    image: Image.Image
    """RGB, to be encoded: of the job's size, or with resize_mode "latent" of any multiple of 8.

    Unless `fill` is "original", the masked area is filled with the surrounding colours; as in
    A1111, also for the latent modes."""
    fill: MaskFill = "original"
    """The fill mode for `fill_latents`."""
    latent_mask: Tensor | None = None
    """`(1, 1, H/8, W/8)` of the job's size, 1 where generated, else 0; None: everywhere."""
    hires_mask: Tensor | None = None
    """The same for the hires pass; also None if there is no hires pass."""
    overlay: Image.Image | None = None
    """RGBA, opaque where the mask is black; of the size that `apply_overlay` returns."""
    region: Box | None = None
    """The box of the overlay that the result is pasted into; None: all of it."""

    def apply_overlay(self, picture: Image.Image) -> Image.Image:
        """Lay the unmasked original over a generated picture; exact where the mask is black.

        Args:
            picture: RGB, of the size of the last pass. If there is a region, it is pasted into
                that, and the result has the size of the whole initial image.
        """
        if self.overlay is None:
            return picture
        if self.region is None:
            canvas = picture.convert("RGBA")
        else:
            left, top, right, bottom = self.region
            canvas = Image.new("RGBA", self.overlay.size)
            canvas.paste(fit(picture, right - left, bottom - top, "crop_and_resize"), (left, top))
        canvas.alpha_composite(self.overlay)
        return canvas.convert("RGB")


def prepare_image(
    picture: Image.Image, width: int, height: int, resize_mode: ResizeMode
) -> PreparedImage:
    """Prepare an RGB image for img2img without a mask."""
    if resize_mode == "latent":
        return PreparedImage(image=crop_to_multiple_of_8(picture))
    return PreparedImage(image=fit(picture, width, height, resize_mode))


def prepare_inpaint(
    picture: Image.Image,
    mask_image: Image.Image,
    inpaint: Inpaint,
    width: int,
    height: int,
    resize_mode: ResizeMode,
    hires: HiresSize | None,
) -> PreparedImage:
    """Prepare an RGB image for inpainting.

    Args:
        picture: of any size; fitted to width x height by `resize_mode`, or with `only_masked` its
            masked region is, keeping the aspect ratio.
        mask_image: of any mode and size, with its alpha channel (see `to_mask`).
        inpaint: the inpainting options.
        width: of the first pass, in pixels.
        height: likewise.
        resize_mode: how the image is fitted.
        hires: size of the hires pass, to which the mask applies too; None: there is none.

    Raises:
        InvalidRequest: the mask leaves nothing to repaint, or a hires pass would crop the region.
    """
    mask = to_mask(mask_image, inpaint.invert)
    if mask.getbbox() is None:
        colour = "white and invert is set" if inpaint.invert else "black"
        raise InvalidRequest(f"mask_image is all {colour}: nothing would be repainted")
    size = HiresSize(width, height)
    prepare = _prepare_only_masked if inpaint.only_masked else _prepare_whole
    prepared = prepare(picture, mask, inpaint, size, resize_mode, hires)
    if prepared.latent_mask is None or not prepared.latent_mask.any():
        raise InvalidRequest(
            f"too little of mask_image is left to repaint at {width}x{height} with mask_blur "
            f"{inpaint.mask_blur}: give more white, less blur or a larger size, or set only_masked"
        )
    return prepared


def _prepare_whole(
    picture: Image.Image,
    mask: Image.Image,
    inpaint: Inpaint,
    size: HiresSize,
    resize_mode: ResizeMode,
    hires: HiresSize | None,
) -> PreparedImage:
    """Repaint within the whole picture; as in A1111, picture and mask are fitted separately."""
    mask = blur_mask(mask, inpaint.mask_blur)
    final = hires or size
    original = _fit_to_pass(picture, final, resize_mode)
    # A1111 doubles the mask: the overlay is fully transparent from half-way through the blur, where
    # the latent mask changes from 0 to 1.
    doubled = [min(255, 2 * value) for value in range(256)]
    overlay_mask = _fit_to_pass(mask, final, resize_mode).point(doubled)
    image = prepare_image(picture, size.width, size.height, resize_mode).image
    if inpaint.fill != "original":
        image = fill_masked(image, fit(mask, image.width, image.height, resize_mode))
    return PreparedImage(
        image=image,
        fill=inpaint.fill,
        latent_mask=to_latent_mask(_fit_to_pass(mask, size, resize_mode)),
        hires_mask=to_latent_mask(_fit_to_pass(mask, hires, resize_mode)) if hires else None,
        overlay=erase_masked(original, overlay_mask).convert("RGBA"),
    )


def _prepare_only_masked(
    picture: Image.Image,
    mask: Image.Image,
    inpaint: Inpaint,
    size: HiresSize,
    resize_mode: ResizeMode,
    hires: HiresSize | None,
) -> PreparedImage:
    """Repaint the masked region at the job's size, fitted by "resize_and_fill" in all modes."""
    if hires and (hires.cut_columns or hires.cut_rows):
        raise InvalidRequest(
            "with only_masked the hires pass must keep the proportions: give hires a scale, or "
            f"width or height alone; it would cut {hires.enlarged_width}x{hires.enlarged_height} "
            f"to {hires.width}x{hires.height}"
        )
    mask = blur_mask(resize(mask, *picture.size), inpaint.mask_blur)
    region = masked_region(mask, size.width, size.height, inpaint.padding)
    if region is None:
        return PreparedImage(image=picture)
    region_mask = mask.crop(region)
    image = _fit_to_pass(picture.crop(region), size, "resize_and_fill")
    if inpaint.fill != "original":
        image = fill_masked(image, _fit_to_pass(region_mask, size, "resize_and_fill"))
    return PreparedImage(
        image=image,
        fill=inpaint.fill,
        latent_mask=to_latent_mask(_fit_to_pass(region_mask, size, "resize_and_fill")),
        hires_mask=to_latent_mask(_fit_to_pass(region_mask, hires, "resize_and_fill"))
        if hires
        else None,
        overlay=erase_masked(picture, mask).convert("RGBA"),
        region=region,
    )


def _fit_to_pass(image: Image.Image, size: HiresSize, resize_mode: ResizeMode) -> Image.Image:
    """Fit and crop a picture or mask to the size of a pass."""
    return size.crop_image(fit(image, size.enlarged_width, size.enlarged_height, resize_mode))
