"""A checkpoint with some engine options applied, and what can be timed on it."""

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


def time_once(run: Callable[[], object], device: torch.device) -> float:
    """Time one run: CPU seconds of all threads, or on a GPU wall seconds until it has finished."""
    if device.type == "cpu":
        started_s = process_time()
        run()
        return process_time() - started_s
    torch.cuda.synchronize()
    started_s = perf_counter()
    run()
    torch.cuda.synchronize()
    return perf_counter() - started_s


def best_time(run: Callable[[], object], device: torch.device, times: int = 4) -> float:
    """The minimum seconds of several runs, as `time_once` counts them."""
    return min(time_once(run, device) for _ in range(times))


def time_alternately(
    one: Callable[[], object], other: Callable[[], object], device: torch.device
) -> tuple[float, float]:
    """The minimum seconds of each, alternating so that a slowing machine slows both."""
    pairs = [(time_once(one, device), time_once(other, device)) for _ in range(_ROUNDS)]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


@dataclass(frozen=True, eq=False)
class Call:
    """The UNet's inputs for a batch with guidance: two rows for each picture."""

    latents: Tensor
    timestep: Tensor
    hidden: Tensor
    added: dict[str, Tensor] | None


class Trial:
    """A checkpoint with engine options applied.

    Args:
        path: of a single-file checkpoint.
        device: to run it on.
        dtype: of its weights.
        options: to apply.
    """

    def __init__(
        self, path: Path, device: torch.device, dtype: torch.dtype, options: Options
    ) -> None:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        self._baseline_bytes = before
        self._device, self._dtype = device, dtype
        storage_device = device if options.offload == "none" else torch.device("cpu")
        self._pipeline = load_single_file(path, storage_device, dtype).pipeline
        apply_options(self._pipeline, options, device)

    def call(self, batch: int, size_px: int, windows: int = 1) -> Call:
        """Random inputs for a batch of square pictures, with prompts of `windows` windows."""
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
        """Decode one picture of the call's size."""
        return self._pipeline.vae.decode(call.latents[:1], return_dict=False)[0]

    def first_s(self, call: Call) -> float:
        """Wall seconds until the call can be rendered, with compiling and recording graphs."""
        started_s = perf_counter()
        for _ in range(3):
            self.denoise(call)
        self.decode(call)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started_s

    def flop(self, call: Call) -> int:
        """FLOP of one evaluation; a multiply-add counts as two."""
        with FlopCounterMode(display=False) as counter:
            self.denoise(call)
        return counter.get_total_flops()

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Peak device memory of this checkpoint during a run; on the CPU it runs, and gives 0."""
        if self._device.type == "cpu":
            run()
            return 0
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - self._baseline_bytes

    def switch(self, call: Call) -> tuple[float, int]:
        """Switch LoRAs and evaluate, several times.

        Returns:
            The minimum seconds of a switch, and the number of graphs recompiled because of them.
        """
        modules: dict[Component, Module] = {"unet": self._pipeline.unet}
        state = MergedState(
            modules, device_budget_bytes=2**40, merged_cache_bytes=0, verify_every=2**60
        )
        targets = linear_targets("unet", self._pipeline.unet)
        loras = [
            random_lora(str(seed), modules, targets, rank=_LORA_RANK, seed=seed)
            for seed in range(2)
        ]
        self.denoise(call)
        unet_device = self._pipeline.unet.device
        for delta in (delta for lora in loras for delta in lora.deltas.values()):
            assert isinstance(delta, LowRank)
            delta.up, delta.down = delta.up.to(unet_device), delta.down.to(unet_device)
        graphs = counters["stats"]["unique_graphs"]
        switch_s: list[float] = []
        for lora in (*loras, *loras):
            adapters = [ScaledAdapter(adapter=lora, unet_scale=0.8, text_encoder_scale=0.8)]
            switch_s.append(
                time_once(lambda adapters=adapters: state.switch(adapters), self._device)
            )
            self.denoise(call)
        state.switch(())
        return min(switch_s[1:]), counters["stats"]["unique_graphs"] - graphs


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of large square matrices."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    best_s = best_time(lambda: torch.mm(one, other), device, times=9)
    return 2 * side**3 / best_s
