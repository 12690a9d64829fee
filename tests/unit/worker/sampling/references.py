"""Reference solvers: k-diffusion's or diffusers' own, else a plain implementation in float64.

The plain ones follow A1111's form, with latents of unit variance where A1111 has those.
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
"""A1111's settings, as a diffusers config."""

# diffusers' schedulers have no common type with the methods used here.
Scheduler = Any
Reference = Callable[[Denoise, Tensor, Tensor, StepNoise, float], Tensor]


def diffusers_scheduler(name: str, config: Mapping[str, object]) -> Scheduler:
    return getattr(diffusers, name)(**config)


def _from_k_diffusion(name: str, stochastic: bool = False, **options: str) -> Reference:
    """k-diffusion's function; a stochastic one is passed eta and the noise sampler."""

    def reference(
        denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
    ) -> Tensor:
        def model(latents: Tensor, sigma: Tensor) -> Tensor:
            return denoise(latents, sigma[0])

        keywords: dict[str, Any] = {"eta": eta, "noise_sampler": noise} if stochastic else {}
        sample = getattr(k_diffusion("sampling"), f"sample_{name}")
        return sample(model, latents, sigmas, disable=True, **keywords, **options)

    return reference


def ddim(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    alphas = 1 / (1 + sigmas.double() ** 2)
    x = latents.double() * alphas[0].sqrt()
    for i in range(len(sigmas) - 1):
        alpha, alpha_next = alphas[i], alphas[i + 1]
        clean = denoise((x / alpha.sqrt()).float(), sigmas[i]).double()
        epsilon = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        spread = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).sqrt()
        x = alpha_next.sqrt() * clean + (1 - alpha_next - spread**2).sqrt() * epsilon
        if eta:
            x = x + spread * noise(sigmas[i], sigmas[i + 1])
    return x.float()


def plms(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float) -> Tensor:
    alphas = 1 / (1 + sigmas.double() ** 2)
    x = latents.double() * alphas[0].sqrt()

    def epsilon_at(x: Tensor, i: int) -> Tensor:
        clean = denoise((x / alphas[i].sqrt()).float(), sigmas[i]).double()
        return (x - alphas[i].sqrt() * clean) / (1 - alphas[i]).sqrt()

    def step(epsilon: Tensor, i: int) -> Tensor:
        clean = (x - (1 - alphas[i]).sqrt() * epsilon) / alphas[i].sqrt()
        return alphas[i + 1].sqrt() * clean + (1 - alphas[i + 1]).sqrt() * epsilon

    old: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        e = epsilon_at(x, i)
        if len(old) == 0:
            mean = (e + epsilon_at(step(e, i), i + 1)) / 2
        elif len(old) == 1:
            mean = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            mean = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mean = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        x = step(mean, i)
        old.append(e)
    return x.float()


def unipc(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
) -> Tensor:
    """diffusers' solver, with its table of sigmas replaced."""
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
    length, restarts = (9, 1) if steps < 36 else (steps // 4, 2)
    main = karras(steps - length * restarts, sigmas[-2].item(), sigmas[0].item())
    low = int((main - 0.1).abs().argmin())
    high = int((main - 2).abs().argmin())
    repeated = karras(length + 1, main[low].item(), main[high].item())[:-1]
    x = heun(denoise, latents, main[: low + 1], noise, 0)
    for _ in range(restarts):
        x = x + noise(main[low], repeated[0]) * (repeated[0] ** 2 - main[low] ** 2).sqrt()
        x = heun(denoise, x, repeated, noise, 0)
    return heun(denoise, x, main[low:], noise, 0)


REFERENCES: Mapping[SchedulerName, Reference] = {
    "ddim": ddim,
    "dpm_2": _from_k_diffusion("dpm_2"),
    "dpm_2_ancestral": _from_k_diffusion("dpm_2_ancestral", stochastic=True),
    "dpmpp_2m": _from_k_diffusion("dpmpp_2m"),
    "dpmpp_2m_sde": _from_k_diffusion("dpmpp_2m_sde", stochastic=True, solver_type="midpoint"),
    "dpmpp_2m_sde_heun": _from_k_diffusion("dpmpp_2m_sde", stochastic=True, solver_type="heun"),
    "dpmpp_2s_ancestral": _from_k_diffusion("dpmpp_2s_ancestral", stochastic=True),
    "dpmpp_3m_sde": _from_k_diffusion("dpmpp_3m_sde", stochastic=True),
    "dpmpp_sde": _from_k_diffusion("dpmpp_sde", stochastic=True),
    "euler": _from_k_diffusion("euler"),
    "euler_ancestral": _from_k_diffusion("euler_ancestral", stochastic=True),
    "heun": _from_k_diffusion("heun"),
    "lcm": lcm,
    "lms": _from_k_diffusion("lms"),
    "plms": plms,
    "restart": restart,
    "unipc": unipc,
}
