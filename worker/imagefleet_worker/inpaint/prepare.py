"""The initial picture made ready for img2img, before any model is needed."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from imagefleet_shared.errors import InvalidRequest
from imagefleet_shared.field_types import MaskFill, ResizeMode
from imagefleet_shared.request_parts import Inpaint
from imagefleet_worker.imaging.convert import resize
from imagefleet_worker.imaging.hires_size import HiresSize
from imagefleet_worker.inpaint.fill import fill_masked, without_masked
from imagefleet_worker.inpaint.fit import fit, own_size
from imagefleet_worker.inpaint.mask import blurred, to_latent_mask, to_mask
from imagefleet_worker.inpaint.region import Box, masked_region


# Compared by identity: jobs of a batch may differ in their pictures and masks, not in `fill`.
@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedImage:
    """What img2img starts from, and how its result becomes the picture that was asked for."""

    image: Image.Image
    """RGB, to be encoded: of the job's size, or, to be stretched as latents, of any multiple of 8.

    Where `fill` is not "original", the surroundings' colours lie under the mask, as in A1111 for
    the latent modes too."""
    fill: MaskFill = "original"
    """What `fill_latents` is to put under the mask."""
    latent_mask: Tensor | None = None
    """`(1, 1, H/8, W/8)` of the job's size, 1 where drawn, 0 elsewhere; None: drawn everywhere."""
    hires_mask: Tensor | None = None
    """The same for the hires pass; None where there is none too."""
    overlay: Image.Image | None = None
    """RGBA, what stays: opaque where the mask is black. Of the size of what `finish` gives."""
    region: Box | None = None
    """Where in the overlay the result belongs; None: it covers it."""

    def overlay_kept(self, picture: Image.Image) -> Image.Image:
        """What was drawn (RGB), laid under what stays; the same bytes where the mask is black.

        Args:
            picture: of the size of the last pass. With a region it is resized to that, and the
                whole initial picture comes back, at its own size.
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
    """An RGB picture, all of which is drawn over."""
    if resize_mode == "latent":
        return PreparedImage(image=own_size(picture))
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
    """An RGB picture that is drawn over where a mask says.

    Args:
        picture: of any size; brought to width x height by `resize_mode`, or, where `only_masked`,
            its region is, at its own proportions.
        mask_image: of any mode and size, alpha kept (see `to_mask`).
        hires: of the hires pass; the mask holds there too.

    Raises:
        InvalidRequest: nothing would be drawn, or a part of the region would not be.
    """
    mask = to_mask(mask_image, inpaint.invert)
    if mask.getbbox() is None:
        colour = "white and invert is set" if inpaint.invert else "black"
        raise InvalidRequest(f"mask_image is all {colour}: nothing would be drawn")
    size = HiresSize(width, height)
    prepare = _only_masked if inpaint.only_masked else _whole
    prepared = prepare(picture, mask, inpaint, size, resize_mode, hires)
    if prepared.latent_mask is None or not prepared.latent_mask.any():
        raise InvalidRequest(
            f"too little of mask_image is left to be drawn at {width}x{height} with mask_blur "
            f"{inpaint.mask_blur}: give more white, less blur or a larger size, or set only_masked"
        )
    return prepared


def _whole(
    picture: Image.Image,
    mask: Image.Image,
    inpaint: Inpaint,
    size: HiresSize,
    resize_mode: ResizeMode,
    hires: HiresSize | None,
) -> PreparedImage:
    """The whole picture at the job's size; picture and mask are fitted each by itself, as A1111."""
    mask = blurred(mask, inpaint.mask_blur)
    final = hires or size
    stays = _placed(picture, final, resize_mode)
    # A1111 doubles it: half-way through the blur, where latents turn from kept to drawn, the
    # overlay is gone already.
    doubled = [min(255, 2 * value) for value in range(256)]
    covered = _placed(mask, final, resize_mode).point(doubled)
    image = prepare_image(picture, size.width, size.height, resize_mode).image
    if inpaint.fill != "original":
        image = fill_masked(image, fit(mask, image.width, image.height, resize_mode))
    return PreparedImage(
        image=image,
        fill=inpaint.fill,
        latent_mask=to_latent_mask(_placed(mask, size, resize_mode)),
        hires_mask=to_latent_mask(_placed(mask, hires, resize_mode)) if hires else None,
        overlay=without_masked(stays, covered).convert("RGBA"),
    )


def _only_masked(
    picture: Image.Image,
    mask: Image.Image,
    inpaint: Inpaint,
    size: HiresSize,
    resize_mode: ResizeMode,
    hires: HiresSize | None,
) -> PreparedImage:
    """The masked region alone at the job's size, by "resize_and_fill" whatever `resize_mode` is."""
    if hires and (hires.cut_columns or hires.cut_rows):
        raise InvalidRequest(
            "with only_masked the hires pass must keep the proportions: give hires a scale, or "
            f"width or height alone; it would cut {hires.enlarged_width}x{hires.enlarged_height} "
            f"to {hires.width}x{hires.height}"
        )
    mask = blurred(resize(mask, *picture.size), inpaint.mask_blur)
    region = masked_region(mask, size.width, size.height, inpaint.padding)
    if region is None:
        return PreparedImage(image=picture)
    within = mask.crop(region)
    image = _placed(picture.crop(region), size, "resize_and_fill")
    if inpaint.fill != "original":
        image = fill_masked(image, _placed(within, size, "resize_and_fill"))
    return PreparedImage(
        image=image,
        fill=inpaint.fill,
        latent_mask=to_latent_mask(_placed(within, size, "resize_and_fill")),
        hires_mask=to_latent_mask(_placed(within, hires, "resize_and_fill")) if hires else None,
        overlay=without_masked(picture, mask).convert("RGBA"),
        region=region,
    )


def _placed(image: Image.Image, size: HiresSize, resize_mode: ResizeMode) -> Image.Image:
    """A picture or mask where it lies in that pass."""
    return size.crop_picture(fit(image, size.enlarged_width, size.enlarged_height, resize_mode))
