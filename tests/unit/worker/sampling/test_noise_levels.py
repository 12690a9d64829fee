"""Noise levels from a checkpoint's config, and conversion of timesteps and predictions."""

import pytest
import torch
from torch import Tensor

from imagefleet_worker.sampling.noise_levels import ConsistencyLevels, NoiseLevels, Prediction
from tests.unit.worker.sampling.oracle import k_diffusion
from tests.unit.worker.sampling.references import diffusers_scheduler
from tests.unit.worker.sampling.toys import LEVELS, SD1, unit_noise

CONFIGS = [
    SD1,
    SD1 | {"beta_schedule": "linear"},
    {"trained_betas": [0.001, 0.01, 0.1, 0.2], "num_train_timesteps": 4},
    {},
]


K_LEVELS = k_diffusion("external").DiscreteSchedule(LEVELS.sigmas, quantize=False)


@pytest.mark.parametrize("config", CONFIGS)
def test_levels_follow_the_diffusers_config(config: dict[str, object]) -> None:
    alphas = diffusers_scheduler("DDIMScheduler", config).alphas_cumprod
    levels = NoiseLevels.from_config(config)
    torch.testing.assert_close(levels.sigmas, ((1 - alphas) / alphas).sqrt(), rtol=2e-4, atol=0)
    assert levels.sigmas.dtype == torch.float32
    assert levels.prediction == "epsilon"


def test_stable_diffusions_levels_are_the_known_ones() -> None:
    """k-diffusion's figures for SD 1, which the published schedules give too."""
    assert LEVELS.sigma_min == pytest.approx(0.029167, rel=1e-4)
    assert LEVELS.sigma_max == pytest.approx(14.614647, rel=1e-6)


def test_zero_terminal_snr_moves_the_last_level_only_not_quite_to_infinity() -> None:
    config = SD1 | {"rescale_betas_zero_snr": True}
    levels = NoiseLevels.from_config(config)
    assert levels.sigma_max == pytest.approx(4518.76, rel=1e-5)
    assert levels.sigma_min == pytest.approx(LEVELS.sigma_min, rel=1e-5)
    theirs = diffusers_scheduler("DDIMScheduler", config).alphas_cumprod[:-1]
    ours = 1 / (1 + levels.sigmas[:-1] ** 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "config", [{"prediction_type": "sample"}, {"beta_schedule": "squaredcos_cap_v2"}]
)
def test_an_unsupported_config_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not"):
        NoiseLevels.from_config(config)


@pytest.mark.parametrize(
    "sigma", [0.001, 0.029167, 0.0292, 0.035, 1.0, 3.14159, 14.6, 14.614647, 20.0]
)
def test_a_sigma_has_the_timestep_that_k_diffusion_gives_it(sigma: float) -> None:
    one = torch.tensor(sigma)
    expected = K_LEVELS.sigma_to_t(one)
    torch.testing.assert_close(LEVELS.timestep(one), expected, rtol=0, atol=1e-3)


def test_a_timestep_has_the_sigma_that_k_diffusion_gives_it() -> None:
    timesteps = torch.tensor([0, 0.25, 1, 17.5, 500, 998.9, 999])
    expected = K_LEVELS.t_to_sigma(timesteps)
    torch.testing.assert_close(LEVELS.sigma(timesteps), expected)
    torch.testing.assert_close(LEVELS.timestep(expected), timesteps, rtol=0, atol=1e-3)


def test_every_whole_timestep_survives_the_round_trip() -> None:
    timesteps = torch.arange(1000)
    back = LEVELS.timestep(LEVELS.sigma(timesteps))
    torch.testing.assert_close(back, timesteps.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.0])
def test_a_perfect_prediction_gives_the_clean_latents(prediction: Prediction, sigma: float) -> None:
    clean, noise, level = unit_noise(1), unit_noise(2), torch.tensor(sigma)
    latents = clean + level * noise
    signal, spread = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
    predicted = noise if prediction == "epsilon" else signal * noise - spread * clean
    levels = NoiseLevels.from_config(SD1 | {"prediction_type": prediction})
    torch.testing.assert_close(levels.clean(latents, predicted, level), clean, atol=1e-5, rtol=1e-5)


def test_half_precision_predictions_are_not_multiplied_in_half_precision() -> None:
    sigma = torch.tensor(14.0)
    predicted = unit_noise(1).half()
    clean = LEVELS.clean(torch.zeros(2, 4, 6, 8), predicted, sigma)
    assert clean.dtype == torch.float32
    assert torch.equal(clean, -14 * predicted.float())


def test_the_unet_input_has_unit_variance() -> None:
    latents = unit_noise(1) + 7 * unit_noise(2)
    scaled = LEVELS.unet_input(latents, torch.tensor(7.0))
    torch.testing.assert_close(scaled, latents / 50**0.5)


def lcm_level(timestep: int) -> Tensor:
    return LEVELS.sigmas[timestep]


def test_consistency_levels_are_every_twentieth() -> None:
    levels = ConsistencyLevels.from_levels(LEVELS)
    assert len(levels.sigmas) == 50
    assert levels.sigma_max == LEVELS.sigma_max
    assert levels.sigma_min == lcm_level(19).item()


@pytest.mark.parametrize(("near", "timestep"), [(19, 19), (0, 19), (668, 659), (672, 679)])
def test_a_consistency_model_is_evaluated_at_the_nearest_trained_timestep(
    near: int, timestep: int
) -> None:
    levels = ConsistencyLevels.from_levels(LEVELS)
    assert levels.timestep(lcm_level(near)).item() == timestep


def test_consistency_levels_are_interpolated_in_log_sigma() -> None:
    levels = ConsistencyLevels.from_levels(LEVELS)
    middle = levels.sigma(torch.tensor(49.0))
    torch.testing.assert_close(middle, (lcm_level(39) * lcm_level(59)).sqrt())
    torch.testing.assert_close(levels.sigma(torch.tensor(3.0)), lcm_level(19))


def test_a_consistency_models_skip_connection_is_nearly_zero() -> None:
    """At timestep 19 it adds 7 millionths of the latents."""
    levels, sigma = ConsistencyLevels.from_levels(LEVELS), lcm_level(19)
    latents, predicted = 1000 * unit_noise(1), torch.zeros(2, 4, 6, 8)
    skip = 0.25 / (190**2 + 0.25)
    out = 190 / (190**2 + 0.25) ** 0.5
    expected = (skip + out) * latents.double()
    torch.testing.assert_close(
        levels.clean(latents, predicted, sigma).double(), expected, rtol=2e-7, atol=0
    )
