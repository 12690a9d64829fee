"""The noise levels that a checkpoint was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]

_LAST_ALPHA_BAR = 4.8973451890853435e-08
"""A1111's substitute for an alpha bar of zero, which would mean an infinite sigma."""
_CONSISTENCY_STRIDE = 20
_SIGMA_DATA = 0.5


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The levels of all training timesteps, in sigma space: latents = clean + sigma * noise.

    Tables and results are float32 on the CPU; latents stay on their device.
    """

    sigmas: Tensor
    """`(T,)`, ascending."""
    prediction: Prediction
    """What the UNet predicts."""

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The levels of a checkpoint, from its diffusers scheduler config.

        Raises:
            ValueError: the config has an unsupported beta schedule or prediction type.
        """
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is {prediction!r}, not epsilon or v_prediction")
        alpha_bars = (1 - _betas(config)).cumprod(0).float()
        if config.get("rescale_betas_zero_snr"):
            alpha_bars = _to_zero_terminal_snr(alpha_bars)
        return cls(((1 - alpha_bars) / alpha_bars).sqrt(), prediction)

    @property
    def sigma_min(self) -> float:
        """The lowest level, that of the first timestep."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """The highest level, that of the last timestep."""
        return self.sigmas[-1].item()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of a level, interpolated in log sigma."""
        logs, log = self.sigmas.log(), sigma.cpu().log()
        low = (torch.searchsorted(logs, log, right=True) - 1).clamp(0, len(logs) - 2)
        fraction = (log - logs[low]) / (logs[low + 1] - logs[low])
        return low + fraction.clamp(0, 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The level of a timestep: the inverse of `timestep`."""
        timestep = timestep.float()
        low, high, fraction = timestep.floor().long(), timestep.ceil().long(), timestep.frac()
        logs = self.sigmas.log()
        return ((1 - fraction) * logs[low] + fraction * logs[high]).exp()

    def unet_input(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """Latents scaled to unit variance, as the UNet expects them."""
        return latents / (sigma**2 + 1).sqrt()

    def clean(self, latents: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
        """Clean latents from the UNet's output, in the dtype of `latents`."""
        # A half-precision output times a level would stay in half precision.
        predicted = predicted.to(latents.dtype)
        if self.prediction == "epsilon":
            return latents - sigma * predicted
        variance = sigma**2 + 1
        return latents / variance - predicted * (sigma / variance.sqrt())


@dataclass(frozen=True, eq=False)
class ConsistencyLevels(NoiseLevels):
    """Every 20th level, on which latent consistency models are trained (arXiv:2310.04378).

    As in A1111's LCM sampler, a sigma stands for the nearest of those timesteps.
    """

    @classmethod
    def from_levels(cls, levels: NoiseLevels) -> Self:
        """The levels of timesteps 19, 39, ... 999."""
        return cls(levels.sigmas[_CONSISTENCY_STRIDE - 1 :: _CONSISTENCY_STRIDE], levels.prediction)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of the nearest level in log sigma."""
        distances = (sigma.cpu().log() - self.sigmas.log()[:, None]).abs()
        nearest = distances.argmin(0).reshape(sigma.shape)
        return (nearest * _CONSISTENCY_STRIDE + _CONSISTENCY_STRIDE - 1).float()

    def sigma(self, timestep: Tensor) -> Tensor:
        """The level of any timestep, interpolated in log sigma between the trained levels."""
        index = (timestep - (_CONSISTENCY_STRIDE - 1)) / _CONSISTENCY_STRIDE
        return super().sigma(index.clamp(0, len(self.sigmas) - 1))

    def clean(self, latents: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
        """Clean latents, with the skip connection of a consistency model's boundary condition."""
        scaled = 10 * self.timestep(sigma)
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / (scaled**2 + _SIGMA_DATA**2).sqrt()
        return out * super().clean(latents, predicted, sigma) + skip * latents


def _betas(config: Mapping[str, object]) -> Tensor:
    """The betas `(T,)` float64; missing keys default as in diffusers."""
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float64)
    steps = cast(int, config.get("num_train_timesteps", 1000))
    first = cast(float, config.get("beta_start", 0.0001))
    last = cast(float, config.get("beta_end", 0.02))
    shape = config.get("beta_schedule", "linear")
    if shape == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    if shape == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    raise ValueError(f"beta_schedule is {shape!r}, not linear or scaled_linear")


def _to_zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """Shift and scale the signal to zero at the last timestep (arXiv:2305.08891, 3.1)."""
    signal = alpha_bars.sqrt()
    first, last = signal[0], signal[-1]
    rescaled = ((signal - last) * (first / (first - last))) ** 2
    rescaled[-1] = _LAST_ALPHA_BAR
    return rescaled
