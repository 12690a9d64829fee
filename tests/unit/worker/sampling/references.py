"""Every solver a second time: k-diffusion's or diffusers' own, else written out in float64.

What is written out follows A1111's form, in latents of unit variance where A1111 has those.
"""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from imagefleet_shared.samplers import SchedulerName
from imagefleet_worker.sampling.steps import Denoise, StepNoise
from tests.unit.worker.sampling.oracle import k_diffusion
from tests.unit.worker.sampling.toys import SD1

UNIPC = SD1 | {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
"""A1111's settings, for diffusers."""

# diffusers' schedulers have no common type that says what is used here.
Scheduler = Any
Reference = Callable[[Denoise, Tensor, Tensor, StepNoise, float], Tensor]


def diffusers_scheduler(name: str, config: Mapping[str, object]) -> Scheduler:
    return getattr(diffusers, name)(**config)


def _from_k_diffusion(name: str, takes: str = "", **more: str) -> Reference:
    """k-diffusion's function; takes: "eta" and the noise with it, or nothing."""

    def reference(
        denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
    ) -> Tensor:
        def model(latents: Tensor, sigma: Tensor) -> Tensor:
            return denoise(latents, sigma[0])

        keywords: dict[str, Any] = {"eta": eta, "noise_sampler": noise} if takes else {}
        sample = getattr(k_diffusion("sampling"), f"sample_{name}")
        return sample(model, latents, sigmas, disable=True, **keywords, **more)

    return reference


def ddim(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    alphas = 1 / (1 + sigmas.double() ** 2)
    x = latents.double() * alphas[0].sqrt()
    for i in range(len(sigmas) - 1):
        now, then = alphas[i], alphas[i + 1]
        clean = denoise((x / now.sqrt()).float(), sigmas[i]).double()
        epsilon = (x - now.sqrt() * clean) / (1 - now).sqrt()
        spread = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        x = then.sqrt() * clean + (1 - then - spread**2).sqrt() * epsilon
        if eta:
            x = x + spread * noise(sigmas[i], sigmas[i + 1])
    return x.float()


def plms(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    alphas = 1 / (1 + sigmas.double() ** 2)
    x = latents.double() * alphas[0].sqrt()

    def epsilon_at(x: Tensor, i: int) -> Tensor:
        clean = denoise((x / alphas[i].sqrt()).float(), sigmas[i]).double()
        return (x - alphas[i].sqrt() * clean) / (1 - alphas[i]).sqrt()

    def moved(epsilon: Tensor, i: int) -> Tensor:
        clean = (x - (1 - alphas[i]).sqrt() * epsilon) / alphas[i].sqrt()
        return alphas[i + 1].sqrt() * clean + (1 - alphas[i + 1]).sqrt() * epsilon

    old: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        e = epsilon_at(x, i)
        if len(old) == 0:
            mean = (e + epsilon_at(moved(e, i), i + 1)) / 2
        elif len(old) == 1:
            mean = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            mean = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mean = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x = moved(mean, i)
        old.append(e)
    return x.float()


def unipc(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """diffusers', whatever the levels: it takes them from a table that we write over."""
    scheduler = diffusers_scheduler("UniPCMultistepScheduler", UNIPC)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    scheduler.sigmas = sigmas
    x = latents / (sigmas[0] ** 2 + 1).sqrt()
    for i, timestep in enumerate(scheduler.timesteps):
        scale = (sigmas[i] ** 2 + 1).sqrt()
        epsilon = (x * scale - denoise(x * scale, sigmas[i])) / sigmas[i]
        x = scheduler.step(epsilon, timestep, x, return_dict=False)[0]
    return x


def lcm(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    x = latents
    for i in range(len(sigmas) - 1):
        x = denoise(x, sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + sigmas[i + 1] * noise(sigmas[i], sigmas[i + 1])
    return x


def restart(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    heun = _from_k_diffusion("heun")
    steps = len(sigmas) - 1
    if steps < 20:
        return heun(denoise, latents, sigmas, noise, 0)
    karras = k_diffusion("sampling").get_sigmas_karras
    each, times = (9, 1) if steps < 36 else (steps // 4, 2)
    whole = karras(steps - each * times, sigmas[-2].item(), sigmas[0].item())
    low = int((whole - 0.1).abs().argmin())
    high = int((whole - 2).abs().argmin())
    again = karras(each + 1, whole[low].item(), whole[high].item())[:-1]
    x = heun(denoise, latents, whole[: low + 1], noise, 0)
    for _ in range(times):
        x = x + noise(whole[low], again[0]) * (again[0] ** 2 - whole[low] ** 2).sqrt()
        x = heun(denoise, x, again, noise, 0)
    return heun(denoise, x, whole[low:], noise, 0)


REFERENCES: Mapping[SchedulerName, Reference] = {
    "ddim": ddim,
    "dpm_2": _from_k_diffusion("dpm_2"),
    "dpm_2_ancestral": _from_k_diffusion("dpm_2_ancestral", "eta"),
    "dpmpp_2m": _from_k_diffusion("dpmpp_2m"),
    "dpmpp_2m_sde": _from_k_diffusion("dpmpp_2m_sde", "eta", solver_type="midpoint"),
    "dpmpp_2m_sde_heun": _from_k_diffusion("dpmpp_2m_sde", "eta", solver_type="heun"),
    "dpmpp_2s_ancestral": _from_k_diffusion("dpmpp_2s_ancestral", "eta"),
    "dpmpp_3m_sde": _from_k_diffusion("dpmpp_3m_sde", "eta"),
    "dpmpp_sde": _from_k_diffusion("dpmpp_sde", "eta"),
    "euler": _from_k_diffusion("euler"),
    "euler_ancestral": _from_k_diffusion("euler_ancestral", "eta"),
    "heun": _from_k_diffusion("heun"),
    "lcm": lcm,
    "lms": _from_k_diffusion("lms"),
    "plms": plms,
    "restart": restart,
    "unipc": unipc,
}
