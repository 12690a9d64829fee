"""What the steps of the solvers are made of."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(latents `(B, 4, h, w)`, their level, 0-dim) -> clean latents: one evaluation of the UNet."""


class StepNoise(Protocol):
    """Where a solver takes the noise of a step from."""

    def __call__(self, sigma: Tensor, sigma_next: Tensor, /) -> Tensor:
        """Unit noise `(B, 4, h, w)` for a step between two levels."""
        ...


class Solver(Protocol):
    """A solver: from noised latents to those of the last level."""

    def __call__(
        self, denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: StepNoise, eta: float
    ) -> Tensor:
        """Latents at `sigmas[-1]`.

        Args:
            denoise: guesses the clean latents.
            latents: `(B, 4, h, w)` float32 at `sigmas[0]`: clean + sigma * noise.
            sigmas: `(n + 1,)` descending, best on the CPU, where looking at one waits for nothing.
            noise: for the solvers that add any.
            eta: how much they add; 0: none.
        """
        ...


def interpolate(clean: Tensor, latents: Tensor, share: Tensor) -> Tensor:
    """Latents of a lower level: that share of the way back from the clean ones.

    With share sigma_next / sigma this is Euler's step, and DPM-Solver++'s of order one.
    """
    return clean + share * (latents - clean)


def ancestral(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Split a step in two: the level to go down to, and the noise to add to be at the next."""
    up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt()
    up = up.minimum(sigma_next)
    return (sigma_next**2 - up**2).sqrt(), up


def renoised(
    latents: Tensor, noise: StepNoise, sigma: Tensor, sigma_next: Tensor, amount: Tensor
) -> Tensor:
    """Latents with that much noise added; none is drawn where the amount is 0."""
    if amount == 0:
        return latents
    return latents + noise(sigma, sigma_next).to(latents.device) * amount
