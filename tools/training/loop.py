"""The training loop: learning-rate schedule, averaged weights, resumable state.

Several processes train together if torch's variables are set (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`,
`MASTER_PORT`): when other programs compete for the cores, processes that synchronise once per step
are faster than threads that synchronise in every layer.
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
    """Length and learning rate of a training."""

    steps: int
    learning_rate: float
    ema: float = 0.999
    weight_decay: float = 0.0


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def processes() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


_Module = TypeVar("_Module", bound=nn.Module)


def to_device(module: _Module) -> _Module:
    """Move a module to the device, in channels-last memory format."""
    nn.Module.to(module, device())
    nn.Module.to(module, memory_format=torch.channels_last)
    return module


def learning_rate(plan: Plan, step: int) -> float:
    """Warm-up, then constant, then linear decay to zero over the last quarter.

    Before the last quarter nothing depends on the number of steps, so that a training can be
    resumed with a different one.
    """
    decay = (plan.steps - step) / (plan.steps * _DECAY_SHARE)
    return plan.learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS, max(0.0, decay))


def train(
    modules: Mapping[str, nn.Module],
    loss_of: Callable[[int], torch.Tensor],
    plan: Plan,
    state: Path,
) -> dict[str, nn.Module]:
    """Train those parameters of the modules that require gradients, in place.

    All processes return the same weights; the first one saves the state.

    Args:
        modules: the modules by name, on their device.
        loss_of: the loss of a step; with several processes, each has its own step numbers. Must
            seed its random numbers with the number alone, so that resuming changes nothing.
        plan: length and learning rate.
        state: file that is saved every two minutes and loaded at the start if it exists.

    Returns:
        Copies of the modules with the averaged weights.
    """
    is_distributed = processes() > 1
    if is_distributed:
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if is_distributed else 0
    averaged = {name: deepcopy(module) for name, module in modules.items()}
    pairs = [
        (parameter, mean)
        for name, module in modules.items()
        for parameter, mean in zip(module.parameters(), averaged[name].parameters(), strict=True)
        if parameter.requires_grad
    ]
    optimiser = torch.optim.AdamW(
        [parameter for parameter, _ in pairs], betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )
    first, elapsed_s = 0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        for name in modules:
            modules[name].load_state_dict(saved["modules"][name])
            averaged[name].load_state_dict(saved["averaged"][name])
        optimiser.load_state_dict(saved["optimiser"])
        first, elapsed_s = saved["step"], saved["spent_s"]

    def save(step: int) -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        temporary = state.with_suffix(".new")
        torch.save(
            {
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "averaged": {name: module.state_dict() for name, module in averaged.items()},
                "optimiser": optimiser.state_dict(),
                "step": step,
                "spent_s": elapsed_s + time.monotonic() - started,
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
        if is_distributed:
            _average_gradients([parameter for parameter, _ in pairs])
        nn.utils.clip_grad_norm_([parameter for parameter, _ in pairs], 1.0)
        optimiser.step()
        with torch.no_grad():
            # Early averages decay faster, so that the random initial weights do not persist.
            decay = min(plan.ema, (step + 1) / (step + 10))
            for parameter, mean in pairs:
                mean.lerp_(parameter, 1 - decay)
        total += loss.item()
        if (step + 1) % _LOG_EVERY == 0:
            wall_s = elapsed_s + time.monotonic() - started
            print(f"step {step + 1} loss {total / _LOG_EVERY:.5f} {wall_s:.0f} s", flush=True)
            total = 0.0
        if rank == 0 and time.monotonic() - saved_at > SAVE_EVERY_S:
            save(step + 1)
            saved_at = time.monotonic()
    if rank == 0:
        save(plan.steps)
    return averaged


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over all processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
