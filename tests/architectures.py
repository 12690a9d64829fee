"""Small networks with random weights, one for every supported upscaler architecture."""

import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

_SWIN: dict[str, object] = {
    "img_size": 16,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 8,
}

# name: (module, class name, constructor arguments, scale)
Row = tuple[str, str, dict[str, object], int]
ARCHITECTURES: dict[str, Row] = {
    "swinir-classical": (
        "spandrel.architectures.SwinIR",
        "SwinIR",
        {**_SWIN, "mlp_ratio": 2, "upscale": 3, "upsampler": "pixelshuffle"},
        3,
    ),
    "swinir-lightweight": (
        "spandrel.architectures.SwinIR",
        "SwinIR",
        {**_SWIN, "mlp_ratio": 2, "upscale": 2, "upsampler": "pixelshuffledirect"},
        2,
    ),
    # By the file name under which it is known.
    "003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN": (
        "spandrel.architectures.SwinIR",
        "SwinIR",
        {**_SWIN, "mlp_ratio": 2, "upscale": 4, "upsampler": "nearest+conv"},
        4,
    ),
    "swinir-large": (
        "spandrel.architectures.SwinIR",
        "SwinIR",
        {
            **_SWIN,
            "mlp_ratio": 2,
            "upscale": 4,
            "upsampler": "nearest+conv",
            "resi_connection": "3conv",
        },
        4,
    ),
    "swinir-denoise": (
        "spandrel.architectures.SwinIR",
        "SwinIR",
        {**_SWIN, "mlp_ratio": 2, "upscale": 1, "upsampler": ""},
        1,
    ),
    "swin2sr": (
        "spandrel.architectures.Swin2SR",
        "Swin2SR",
        {**_SWIN, "mlp_ratio": 2, "upscale": 2, "upsampler": "pixelshuffledirect"},
        2,
    ),
    "esrgan": (
        "spandrel.architectures.ESRGAN",
        "ESRGAN",
        {"num_filters": 8, "num_blocks": 1, "scale": 4},
        4,
    ),
    "realesrgan-x2": (
        "spandrel.architectures.ESRGAN",
        "ESRGAN",
        {"num_filters": 8, "num_blocks": 1, "scale": 4, "shuffle_factor": 2, "in_nc": 12},
        2,
    ),
    "compact": (
        "spandrel.architectures.Compact",
        "Compact",
        {"num_feat": 8, "num_conv": 2, "upscale": 4},
        4,
    ),
    "hat": (
        "spandrel.architectures.HAT",
        "HAT",
        {
            **_SWIN,
            "embed_dim": 24,
            "compress_ratio": 3,
            "squeeze_factor": 6,
            "mlp_ratio": 2,
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
        2,
    ),
    "dat": (
        "spandrel.architectures.DAT",
        "DAT",
        {
            "img_size": 16,
            "embed_dim": 16,
            "depth": [2],
            "num_heads": [2],
            "split_size": [4, 8],
            "upscale": 2,
        },
        2,
    ),
    "span": (
        "spandrel.architectures.SPAN",
        "SPAN",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2},
        2,
    ),
    "omnisr": (
        "spandrel.architectures.OmniSR",
        "OmniSR",
        {"num_feat": 16, "res_num": 1, "up_scale": 2},
        2,
    ),
    "plksr": (
        "spandrel.architectures.PLKSR",
        "PLKSR",
        {"dim": 16, "n_blocks": 2, "upscaling_factor": 2},
        2,
    ),
    "realplksr": (
        "spandrel.architectures.PLKSR",
        "RealPLKSR",
        {"dim": 16, "n_blocks": 2, "upscaling_factor": 2},
        2,
    ),
    "atd": (
        "spandrel.architectures.ATD",
        "ATD",
        {
            **_SWIN,
            "upscale": 2,
            "category_size": 64,
            "num_tokens": 8,
            "upsampler": "pixelshuffledirect",
        },
        2,
    ),
    "drct": (
        "spandrel.architectures.DRCT",
        "DRCT",
        {**_SWIN, "gc": 8, "upscale": 2, "upsampler": "pixelshuffle"},
        2,
    ),
    "craft": (
        "spandrel.architectures.CRAFT",
        "CRAFT",
        {"embed_dim": 24, "depths": [1], "num_heads": [6], "upscale": 2},
        2,
    ),
    "dctlsa": ("spandrel.architectures.DCTLSA", "DCTLSA", {"nf": 20, "upscale": 2}, 2),
    "ditn": (
        "spandrel.architectures.DITN",
        "DITN",
        {"dim": 12, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2},
        2,
    ),
    "grl": (
        "spandrel.architectures.GRL",
        "GRL",
        {
            "img_size": 16,
            "embed_dim": 12,
            "depths": [2],
            "num_heads_window": [2],
            "num_heads_stripe": [2],
            "upscale": 2,
            "upsampler": "pixelshuffledirect",
        },
        2,
    ),
    "realcugan": ("spandrel.architectures.RealCUGAN", "UpCunet2x", {}, 2),
    "rgt": (
        "spandrel.architectures.RGT",
        "RGT",
        {"img_size": 16, "embed_dim": 16, "depth": [2], "num_heads": [2], "upscale": 2},
        2,
    ),
    "safmn": (
        "spandrel.architectures.SAFMN",
        "SAFMN",
        {"dim": 12, "n_blocks": 2, "upscaling_factor": 2},
        2,
    ),
    "mosr": ("spandrel.architectures.MoSR", "MoSR", {"n_block": 2, "dim": 16, "upscale": 2}, 2),
    "rcan": (
        "spandrel.architectures.RCAN",
        "RCAN",
        {"scale": 2, "n_resgroups": 1, "n_resblocks": 1, "n_feats": 16},
        2,
    ),
    "scunet": ("spandrel.architectures.SCUNet", "SCUNet", {"config": [1] * 7}, 1),
    "swiftsrgan": (
        "spandrel.architectures.SwiftSRGAN",
        "SwiftSRGAN",
        {"num_channels": 8, "num_blocks": 2, "upscale_factor": 2},
        2,
    ),
    "seemore": (
        "spandrel.architectures.SeemoRe",
        "SeemoRe",
        {"scale": 2, "embedding_dim": 12, "num_layers": 2},
        2,
    ),
    "fdat": (
        "spandrel.architectures.FDAT",
        "FDAT",
        {"embed_dim": 16, "num_groups": 1, "depth_per_group": 2, "num_heads": 2, "scale": 2},
        2,
    ),
    "moesr": (
        "spandrel.architectures.MoESR",
        "MoESR",
        {"dim": 16, "n_blocks": 1, "n_block": 1, "scale": 2},
        2,
    ),
    "srformer": (
        "spandrel_extra_arches.architectures.SRFormer",
        "SRFormer",
        {**_SWIN, "window_size": 8, "upscale": 2, "upsampler": "pixelshuffledirect"},
        2,
    ),
    "restormer": (
        "spandrel_extra_arches.architectures.Restormer",
        "Restormer",
        {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]},
        1,
    ),
}


def random_weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    """The weights of a small network of that row, deterministic by the seed."""
    module, kind, arguments, _ = ARCHITECTURES[name]
    # Warnings about deprecated functions and empty layers are spandrel's concern.
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        network_class: Callable[..., nn.Module] = getattr(import_module(module), kind)
        torch.manual_seed(seed)
        network = network_class(**arguments)
        return {key: value.clone() for key, value in network.state_dict().items()}
