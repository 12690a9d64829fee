"""Rows of the GPU check about a checkpoint's UNet and VAE, for several engine options."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from imagefleet_worker.device.compile import set_up_compiler
from imagefleet_worker.device.presets import Options
from tests.benchmarks.gpu_setup import GpuFamily, Setup
from tests.benchmarks.options_trial import Call, Trial, best_time
from tests.benchmarks.timed_items import Row
from tests.options import PLAIN

_KERNELS = 25
_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class UNetRows:
    """Measures one family's UNet and VAE; each method loads the checkpoint anew.

    Columns are those of `bench_options`; without those that need FLOP until `flop` has run.
    """

    def __init__(self, setup: Setup, family: GpuFamily) -> None:
        self._setup = setup
        self._family: GpuFamily = family
        self._sizes = setup.sizes(family)
        self._graphs = replace(PLAIN, channels_last=True, cuda_graphs=setup.on_gpu)
        self._flop: int | None = None
        """Of one guided evaluation for one picture."""

    @torch.no_grad()
    def flop(self) -> Iterator[Row]:
        """FLOP of a picture in one step."""
        trial = self._trial(PLAIN)
        self._flop = trial.flop(trial.call(1, self._sizes.size_px))
        yield {"tflop per picture and step": self._flop / 1e12}

    @torch.no_grad()
    def plain(self) -> Iterator[Row]:
        """Times without any option."""
        yield from self._times(self._trial(PLAIN), self._sizes.batches)

    @torch.no_grad()
    def graphs(self) -> Iterator[Row]:
        """Times with channels_last and CUDA graphs, of a LoRA switch, and by kernel."""
        trial = self._trial(self._graphs)
        yield from self._times(trial, self._sizes.batches)
        yield self._kernels(trial)
        yield self._lora_switch(trial)

    @torch.no_grad()
    def fast(self) -> Iterator[Row]:
        """Times with the fast preset's options, and by kernel."""
        why_not = self._setup.why_not_compiled
        yield {"compiled": why_not is None, "why_not": why_not}
        set_up_compiler(self._setup.compile_cache_dir)
        trial = self._trial(replace(self._graphs, compile=why_not is None))
        yield from self._times(trial, self._sizes.batches)
        yield self._kernels(trial)
        yield self._lora_switch(trial)

    @torch.no_grad()
    def cudnn_benchmark(self) -> Iterator[Row]:
        """Times where cuDNN tries its convolutions first, beside `graphs`."""
        with _cudnn_benchmark():
            yield from self._times(self._trial(self._graphs), self._sizes.batches[-1:])

    @torch.no_grad()
    def cudnn_attention(self) -> Iterator[Row]:
        """Times where attention is cuDNN's wherever it can be, beside `graphs`."""
        with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
            yield from self._times(self._trial(self._graphs), self._sizes.batches[-1:])

    @torch.no_grad()
    def nchw(self) -> Iterator[Row]:
        """Times without channels_last, beside `graphs`."""
        options = replace(self._graphs, channels_last=False)
        yield from self._times(self._trial(options), self._sizes.batches[-1:])

    def _trial(self, options: Options) -> Trial:
        path = self._setup.checkpoint(self._family)
        return Trial(path, self._setup.device, self._setup.dtype, options)

    def _largest_call(self, trial: Trial) -> Call:
        return trial.call(self._sizes.batches[-1], self._sizes.size_px)

    def _times(self, trial: Trial, batches: Sequence[int]) -> Iterator[Row]:
        for batch in batches:
            yield self._times_of_batch(trial, batch)

    def _times_of_batch(self, trial: Trial, batch: int) -> Row:
        device, steps = self._setup.device, self._setup.steps
        call = trial.call(batch, self._sizes.size_px)
        # The peak includes the capture of graphs.
        first_s: list[float] = []
        peak_bytes = trial.peak_bytes(lambda: first_s.append(trial.first_s(call)))
        step_s = best_time(lambda: trial.denoise(call), device)
        decode_s = best_time(lambda: trial.decode(call), device)
        return {
            "batch": batch,
            "step_s": step_s,
            "decode_s": decode_s,
            "images/s": batch / (steps * step_s + batch * decode_s),
            **self._rate(batch, step_s),
            "peak_gb": peak_bytes / 1e9,
            "first_s": first_s[0],
        }

    def _rate(self, batch: int, step_s: float) -> Row:
        if self._flop is None:
            return {}
        flops = self._flop * batch / step_s
        return {"tflop/s": flops / 1e12, "of_matmul": flops / self._setup.matmul_flops}

    def _lora_switch(self, trial: Trial) -> Row:
        switch_s, compiled_anew = trial.switch(self._largest_call(trial))
        return {"switch_s": switch_s, "compiled_anew": compiled_anew}

    def _kernels(self, trial: Trial) -> Row:
        """The kernels of one evaluation that take longest: name, calls, milliseconds."""
        call = self._largest_call(trial)
        activities = [ProfilerActivity.CPU]
        if self._setup.on_gpu:
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiled:
            trial.denoise(call)
            if self._setup.on_gpu:
                torch.cuda.synchronize()
        events = sorted(profiled.key_averages(), key=self._own_us, reverse=True)
        return {
            "batch": self._sizes.batches[-1],
            "kernels": [
                (event.key[:90], event.count, self._own_us(event) / 1000)
                for event in events[:_KERNELS]
            ],
        }

    def _own_us(self, event: FunctionEventAvg) -> float:
        """Time of an event without those nested in it, on the device, in microseconds."""
        on_gpu = self._setup.on_gpu
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total


@contextmanager
def _cudnn_benchmark() -> Generator[None]:
    """Has cuDNN try its algorithms; the setting is as before afterwards."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
