"""What all trainings share: a schedule that may be cut short, averaged weights, resumable state.

Two or more processes train together if torch's variables say so (`RANK`, `WORLD_SIZE`,
`MASTER_ADDR`, `MASTER_PORT`): where other programs compete for the cores, processes that meet once
a step get further than threads that meet in every layer.
"""

import os
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed, nn

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


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


_Module = TypeVar("_Module", bound=nn.Module)


def placed(module: _Module) -> _Module:
    """The module on the device, its pictures with channels last."""
    nn.Module.to(module, device())
    nn.Module.to(module, memory_format=torch.channels_last)
    return module


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

    Of several processes all return the same, and the first one keeps the state.

    Args:
        modules: the modules by name, on their device.
        loss_of: the loss for a number, which is the step, or one of the step's numbers where
            there are several processes. Must draw its random numbers from it alone, lest a resumed
            training differ.
        plan: how long and how fast.
        state: file that is written every two minutes and read at the start, if it is there.

    Returns:
        Copies of the modules with the averaged weights.
    """
    together = processes() > 1
    if together:
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if together else 0
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
        loss = loss_of(step * processes() + rank)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if together:
            _share_gradients([own for own, _ in pairs])
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
        if rank == 0 and time.monotonic() - saved_at > SAVE_EVERY_S:
            save(step + 1)
            saved_at = time.monotonic()
    if rank == 0:
        save(plan.steps)
    return averaged


def _share_gradients(parameters: list[nn.Parameter]) -> None:
    """Give every process the mean of all gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
