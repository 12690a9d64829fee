"""Small random models of the Stable Diffusion architectures that still produce visible pictures.

The weights are random except in the last layers. The UNet's last convolution is fitted (ridge
regression on its random features) to predict the noise in smooth latents, as sampling would diverge
otherwise; the VAE's are scaled to the range of pictures and latents. The seed determines all of it.
"""

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from imagefleet_worker.adapters.textual_inversion import TextEncoder
from imagefleet_worker.checkpoints.architecture import Config, packaged_config
from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import LdmComponent

SIZE_PX = 128
_LATENT = SIZE_PX // 8
_CLIP_WIDTHS: dict[Family, dict[TextEncoder, int]] = {
    "sd1": {"text_encoder": 96},
    "sdxl": {"text_encoder": 32, "text_encoder_2": 64},
    "sdxl_refiner": {"text_encoder_2": 64},
}
_POOLED = 32
_TIME_EMBEDDING = 32
# Height, width, crop top, crop left; then target height and width, or an aesthetic score.
_TIME_IDS: dict[Family, tuple[float, ...]] = {
    "sdxl": (SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX),
    "sdxl_refiner": (SIZE_PX, SIZE_PX, 0, 0, 6.0),
}
# "attends": whether each level has attention.
_UNETS: dict[Family, Config] = {
    "sd1": {
        "block_out_channels": [64, 96, 128],
        "attends": [True, True, False],
        "attention_head_dim": 8,
        "transformer_layers_per_block": 1,
    },
    "sdxl": {
        "block_out_channels": [32, 64, 128],
        "attends": [False, True, True],
        "attention_head_dim": [1, 1, 2],
        "transformer_layers_per_block": [1, 1, 2],
    },
    "sdxl_refiner": {
        "block_out_channels": [32, 64, 128, 128],
        "attends": [False, True, True, False],
        "attention_head_dim": [1, 1, 2, 2],
        "transformer_layers_per_block": 2,
    },
}
_ENCODERS: dict[TextEncoder, type[CLIPTextModel] | type[CLIPTextModelWithProjection]] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
_FIT_SAMPLES = 64
_RIDGE = 1e-4
_PROMPT_GAIN = 6
_PICTURE_SPREAD = 0.4


def demo_models(family: Family, seed: int) -> dict[LdmComponent, torch.nn.Module]:
    """The family's components, float32, on the CPU, in eval mode; native size 128x128 pixels."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        encoders: dict[LdmComponent, CLIPTextModel | CLIPTextModelWithProjection] = {
            name: _ENCODERS[name](_clip_config(family, name, width))
            for name, width in _CLIP_WIDTHS[family].items()
        }
        unet = UNet2DConditionModel(**_unet_config(family))
        vae = AutoencoderKL(**_vae_config(family))
        for module in (*encoders.values(), unet, vae):
            module.eval()
        _amplify_cross_attention(unet)
        _fit_last_convolution(unet, list(encoders.values()), _TIME_IDS.get(family))
        _scale_vae(vae)
        return {"unet": unet, "vae": vae, **encoders}


def _clip_config(family: Family, component: str, width: int) -> CLIPTextConfig:
    sizes: Config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "projection_dim": _POOLED if component == "text_encoder_2" else width,
    }
    return CLIPTextConfig(**packaged_config(family, component), **sizes)


def _unet_config(family: Family) -> Config:
    config = dict(_UNETS[family])
    kinds = [f"{'CrossAttn' if attends else ''}DownBlock2D" for attends in config.pop("attends")]
    if family in _TIME_IDS:
        added = len(_TIME_IDS[family]) * _TIME_EMBEDDING
        config |= {
            "use_linear_projection": True,
            "addition_time_embed_dim": _TIME_EMBEDDING,
            "projection_class_embeddings_input_dim": _POOLED + added,
        }
    return {
        **packaged_config(family, "unet"),
        **config,
        "layers_per_block": 2,
        "sample_size": _LATENT,
        "cross_attention_dim": sum(_CLIP_WIDTHS[family].values()),
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }


def _vae_config(family: Family) -> Config:
    return {
        **packaged_config(family, "vae"),
        "sample_size": SIZE_PX,
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": 1,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def _amplify_cross_attention(unet: UNet2DConditionModel) -> None:
    """Amplify cross-attention: with random weights, all prompts average to nearly the same."""
    for name, weight in unet.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.mul_(_PROMPT_GAIN)


def _fit_last_convolution(
    unet: UNet2DConditionModel,
    encoders: list[CLIPTextModel | CLIPTextModelWithProjection],
    time_ids: tuple[float, ...] | None,
) -> None:
    """Fit the last convolution by ridge regression of the noise on its input activations.

    The clean latents are smooth and depend on the prompt, so that the picture does too.
    """
    prompts = torch.randint(0, 49_406, (_FIT_SAMPLES, 77))
    prompts[:, 0], prompts[:, 8:] = 49_406, 49_407
    outputs = [encoder(prompts, output_hidden_states=True) for encoder in encoders]
    context = torch.cat([output.hidden_states[-1] for output in outputs], dim=-1)
    themes = context.mean(dim=1)
    themes = (themes - themes.mean(dim=0)) / themes.std(dim=0)
    projection = torch.randn(themes.shape[1], 64) / themes.shape[1] ** 0.5
    coarse = (themes @ projection + torch.randn(_FIT_SAMPLES, 64)).view(_FIT_SAMPLES, 4, 4, 4)
    clean = functional.interpolate(coarse, size=(_LATENT, _LATENT), mode="bicubic")
    noise = torch.randn_like(clean)
    timesteps = torch.randint(0, 1000, (_FIT_SAMPLES,))
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)[timesteps]
    alphas = alphas[:, None, None, None]
    noisy = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise

    activations: list[torch.Tensor] = []
    hook = unet.conv_out.register_forward_pre_hook(lambda _, inputs: activations.append(inputs[0]))
    added = None
    if time_ids:
        repeated = torch.tensor([time_ids] * _FIT_SAMPLES)
        added = {"text_embeds": outputs[-1].text_embeds, "time_ids": repeated}
    unet(noisy, timesteps, context, added_cond_kwargs=added)
    hook.remove()
    patches = (
        functional.unfold(activations[0], kernel_size=3, padding=1).transpose(1, 2).flatten(0, 1)
    )
    features = torch.cat([patches, torch.ones(len(patches), 1)], dim=1).double()
    targets = noise.flatten(2).transpose(1, 2).flatten(0, 1).double()
    gram = features.T @ features + _RIDGE * len(features) * torch.eye(features.shape[1])
    solution = torch.linalg.solve(gram, features.T @ targets).float()
    weight = unet.get_parameter("conv_out.weight")
    weight.copy_(solution[:-1].T.view_as(weight))
    unet.get_parameter("conv_out.bias").copy_(solution[-1])


def _scale_vae(vae: AutoencoderKL) -> None:
    """Scale the last layers so that unit latents decode to visible pictures, and back."""
    scaling = vae.config["scaling_factor"]
    coarse = torch.randn(8, 4, 4, 4)
    latents = functional.interpolate(coarse, size=(_LATENT, _LATENT), mode="bicubic") / scaling
    pictures = vae.decode(latents, return_dict=False)[0]
    gain = _PICTURE_SPREAD / pictures.std()
    vae.get_parameter("decoder.conv_out.weight").mul_(gain)
    vae.get_parameter("decoder.conv_out.bias").sub_(pictures.mean()).mul_(gain)

    pictures = vae.decode(latents, return_dict=False)[0]
    means = vae.get_submodule("quant_conv")(vae.encoder(pictures))[:, :4]
    gain = 1 / (scaling * means.std())
    weight = vae.get_parameter("quant_conv.weight")
    bias = vae.get_parameter("quant_conv.bias")
    weight[:4].mul_(gain)
    bias[:4].sub_(means.mean(dim=(0, 2, 3))).mul_(gain)
    # Almost no variance, as in trained models: encoding a picture is nearly deterministic.
    weight[4:].zero_()
    bias[4:].fill_(-10.0)
