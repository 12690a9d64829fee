"""What all trainings share: a schedule that may be cut short, averaged weights, resumable state."""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

SAVE_EVERY_S = 120
_WARMUP_STEPS = 100
_DECAY_SHARE = 0.25
_LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    ema: float = 0.999
    weight_decay: float = 0.0


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def learning_rate(plan: Plan, step: int) -> float:
    """Warm-up, then constant, then down to zero over the last quarter.

    Until the last quarter begins nothing depends on the number of steps, so that a training may be
    resumed with another one.
    """
    left = (plan.steps - step) / (plan.steps * _DECAY_SHARE)
    return plan.learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS, max(0.0, left))


def train(
    modules: Mapping[str, nn.Module],
    loss_of: Callable[[int], torch.Tensor],
    plan: Plan,
    state: Path,
) -> dict[str, nn.Module]:
    """Train the modules' parameters that ask for gradients, in place.

    Args:
        modules: the modules by name, on their device.
        loss_of: the loss at a step. Must draw its random numbers from the step alone, lest a
            resumed training differ.
        plan: how long and how fast.
        state: file that is written every two minutes and read at the start, if it is there.

    Returns:
        Copies of the modules with the averaged weights.
    """
    averaged = {name: deepcopy(module) for name, module in modules.items()}
    pairs = [
        (own, mean)
        for name, module in modules.items()
        for own, mean in zip(module.parameters(), averaged[name].parameters(), strict=True)
        if own.requires_grad
    ]
    optimiser = torch.optim.AdamW(
        [own for own, _ in pairs], betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )
    first, spent_s = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        for name in modules:
            modules[name].load_state_dict(saved["modules"][name])
            averaged[name].load_state_dict(saved["averaged"][name])
        optimiser.load_state_dict(saved["optimiser"])
        first, spent_s = saved["step"], saved["spent_s"]

    def save(step: int) -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        temporary = state.with_suffix(".new")
        torch.save(
            {
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "averaged": {name: module.state_dict() for name, module in averaged.items()},
                "optimiser": optimiser.state_dict(),
                "step": step,
                "spent_s": spent_s + time.monotonic() - started,
            },
            temporary,
        )
        temporary.replace(state)

    started = saved_at = time.monotonic()
    total = 0.0
    for step in range(first, plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([own for own, _ in pairs], 1.0)
        optimiser.step()
        with torch.no_grad():
            # Young averages forget faster, or the random start would stay in them.
            keep = min(plan.ema, (step + 1) / (step + 10))
            for own, mean in pairs:
                mean.lerp_(own, 1 - keep)
        total += loss.item()
        if (step + 1) % _LOG_EVERY == 0:
            wall_s = spent_s + time.monotonic() - started
            print(f"step {step + 1} loss {total / _LOG_EVERY:.5f} {wall_s:.0f} s", flush=True)
            total = 0.0
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            save(step + 1)
            saved_at = time.monotonic()
    save(plan.steps)
    return averaged
