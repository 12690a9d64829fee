"""A checkpoint that runs by some options, and what can be timed of it."""

# Dynamo's counters have no public name.
# pyright: reportPrivateUsage=false

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import Module
from torch.utils.flop_counter import FlopCounterMode

from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.checkpoints.apply_options import apply_options
from imagefleet_worker.checkpoints.single_file import load_single_file
from imagefleet_worker.device.presets import Options
from tests.random_adapters import LowRank, linear_targets, random_lora

_ROUNDS = 3
_LORA_RANK = 16


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one run: CPU seconds of all threads, or on a GPU those until it is done."""
    if device.type == "cpu":
        started_s = process_time()
        run()
        return process_time() - started_s
    torch.cuda.synchronize()
    started_s = perf_counter()
    run()
    torch.cuda.synchronize()
    return perf_counter() - started_s


def alternately(
    one: Callable[[], object], other: Callable[[], object], device: torch.device
) -> tuple[float, float]:
    """The least seconds of each: turn about, so that a machine that slows down slows both."""
    pairs = [(seconds(one, device), seconds(other, device)) for _ in range(_ROUNDS)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


@dataclass(frozen=True, eq=False)
class Call:
    """The UNet's inputs for a batch, guided: two rows for each picture."""

    latents: Tensor
    timestep: Tensor
    hidden: Tensor
    added: dict[str, Tensor] | None


class Trial:
    """A checkpoint made to run by options.

    Args:
        path: of a single file.
        device: that it runs on.
        dtype: of its weights.
        options: that it runs by.
    """

    def __init__(
        self, path: Path, device: torch.device, dtype: torch.dtype, options: Options
    ) -> None:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        self._resident_bytes = before
        self._device, self._dtype = device, dtype
        resting = device if options.offload == "none" else torch.device("cpu")
        self._pipeline = load_single_file(path, resting, dtype).pipeline
        apply_options(self._pipeline, options, device)

    def call(self, batch: int, size_px: int, windows: int = 1) -> Call:
        """Inputs for so many pictures of that side, with prompts of so many windows."""
        rows, side, unet = 2 * batch, size_px // 8, self._pipeline.unet
        added = None
        if encoder := self._pipeline.components.get("text_encoder_2"):
            pooled = self._noise(rows, encoder.config.projection_dim)
            ids = [[size_px, size_px, 0, 0, size_px, size_px]] * rows
            time_ids = torch.tensor(ids, dtype=torch.float32, device=self._device)
            added = {"text_embeds": pooled, "time_ids": time_ids}
        width = unet.config["cross_attention_dim"]
        return Call(
            latents=self._noise(rows, 4, side, side),
            timestep=torch.tensor(500.0, device=self._device),
            hidden=self._noise(rows, 77 * windows, width),
            added=added,
        )

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device, dtype=self._dtype)

    def denoise(self, call: Call) -> Tensor:
        """One evaluation of the UNet."""
        return self._pipeline.unet(
            call.latents,
            call.timestep,
            encoder_hidden_states=call.hidden,
            added_cond_kwargs=call.added,
            return_dict=False,
        )[0]

    def decode(self, call: Call) -> Tensor:
        """One picture of the call's size."""
        return self._pipeline.vae.decode(call.latents[:1], return_dict=False)[0]

    def first_s(self, call: Call) -> float:
        """Wall seconds until a picture of the call is possible: compiling and recording."""
        started_s = perf_counter()
        for _ in range(3):
            self.denoise(call)
        self.decode(call)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started_s

    def flop(self, call: Call) -> int:
        """Of an evaluation: a multiplication and an addition are two."""
        with FlopCounterMode(display=False) as counter:
            self.denoise(call)
        return counter.get_total_flops()

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Device memory that this checkpoint takes at most during a run; 0 on the CPU."""
        if self._device.type == "cpu":
            return 0
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - self._resident_bytes

    def switch(self, call: Call) -> tuple[float, int]:
        """Change a LoRA and evaluate, thrice.

        Returns:
            The least seconds of a change alone, and graphs that were compiled because of them.
        """
        modules: dict[Component, Module] = {"unet": self._pipeline.unet}
        state = MergedState(modules, device_budget_bytes=2**40, copies_bytes=0, verify_every=2**60)
        targets = linear_targets("unet", self._pipeline.unet)
        loras = [
            random_lora(str(seed), modules, targets, rank=_LORA_RANK, seed=seed)
            for seed in range(2)
        ]
        self.denoise(call)
        place = self._pipeline.unet.device
        for delta in (delta for lora in loras for delta in lora.deltas.values()):
            assert isinstance(delta, LowRank)
            delta.up, delta.down = delta.up.to(place), delta.down.to(place)
        graphs = counters["stats"]["unique_graphs"]
        taken_s: list[float] = []
        for lora in (*loras, *loras):
            wanted = [ScaledAdapter(adapter=lora, unet_scale=0.8, text_encoder_scale=0.8)]
            taken_s.append(seconds(lambda wanted=wanted: state.switch(wanted), self._device))
            self.denoise(call)
        state.switch(())
        return min(taken_s[1:]), counters["stats"]["unique_graphs"] - graphs


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a product of large square matrices."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    least_s = min(seconds(lambda: torch.mm(one, other), device) for _ in range(9))
    return 2 * side**3 / least_s
