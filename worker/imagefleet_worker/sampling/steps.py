"""The solver interface and the operations that solvers share."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(latents `(B, 4, h, w)`, their sigma, 0-dim) -> clean latents: one evaluation of the UNet."""


class StepNoise(Protocol):
    """The source of a solver's noise."""

    def __call__(self, sigma: Tensor, sigma_next: Tensor, /) -> Tensor:
        """Unit noise `(B, 4, h, w)` for a step between two levels."""
        ...


class Solver(Protocol):
    """A solver, which takes latents from the first to the last of a pass's sigmas."""

    def __call__(
        self, denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
    ) -> Tensor:
        """Latents at `sigmas[-1]`.

        Args:
            denoise: predicts the clean latents.
            latents: `(B, 4, h, w)` float32 at `sigmas[0]`: clean + sigma * noise; not modified.
            sigmas: `(n + 1,)` descending, best on the CPU, where reading one does not synchronize.
            noise: for the solvers that add noise.
            eta: amount of noise that they add; 0: none.
        """
        ...


def interpolate(clean: Tensor, latents: Tensor, ratio: Tensor) -> Tensor:
    """Latents of a lower level, interpolated between the clean ones (0) and the present ones (1).

    With the ratio sigma_next / sigma this is a step of Euler and of first-order DPM-Solver++.
    """
    return clean + ratio * (latents - clean)


def ancestral(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Split an ancestral step: the level to step down to, and the noise to add to reach the next.

    These are k-diffusion's `sigma_down` and `sigma_up`.
    """
    up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt()
    up = up.minimum(sigma_next)
    return (sigma_next**2 - up**2).sqrt(), up


def add_noise(
    latents: Tensor, noise: StepNoise, sigma: Tensor, sigma_next: Tensor, amount: Tensor
) -> Tensor:
    """Latents plus `amount` times noise; consumes no random numbers if the amount is 0."""
    if amount == 0:
        return latents
    return latents + noise(sigma, sigma_next).to(latents.device) * amount
