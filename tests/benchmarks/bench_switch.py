"""Time of switching LoRAs: ours, diffusers' and the lower bound, on full-size UNets, in one run.

    python tests/benchmarks/bench_switch.py [--quick] [--family sd1]

UNets and LoRAs have random fp16 weights; LoRAs change every linear layer in attention and
feed-forward blocks. Times are CPU seconds on one thread, the minimum of several runs, so that other
programs matter little and waiting for a disk does not count.

- floor: bytes of the changed weights divided by the measured copy bandwidth.
- restore: unmerge all adapters. change: switch from one set to another, files already parsed. back:
  switch to an earlier set whose merged weights are cached. same: the set that is already merged.
- cold: a change with files to read, hash and parse.
- diffusers: `load_lora_weights`, `fuse_lora`, `unfuse_lora` and `unload_lora_weights`, all four,
  with the tensors in memory; from files ("cold"); and fuse and unfuse alone.

`--quick` uses small UNets and writes no file. SDXL needs up to 16 GB of memory.
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

# Run as a script, Python would look for modules only in its folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file
from torch import Tensor

from imagefleet_worker.adapters.delta import Adapter
from imagefleet_worker.adapters.formats import load_adapter
from imagefleet_worker.adapters.key_names import Naming
from imagefleet_worker.adapters.merge import MergedState
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.weights.families import Family
from tests.benchmarks.diffusers_switch import time_diffusers
from tests.benchmarks.report import report
from tests.benchmarks.timing import least_cpu_s
from tests.full_size import full_size_modules
from tests.random_adapters import linear_targets
from tools.demo_models import demo_models

_FAMILIES: tuple[Family, ...] = ("sd1", "sdxl")
_SCALE = 0.8

Row = dict[str, str | float]


def copied_bytes_per_s() -> float:
    """Memory bandwidth of a copy larger than any cache."""
    source = torch.ones(2**28, dtype=torch.float16)
    copy = torch.empty_like(source)
    return source.nbytes / least_cpu_s(lambda: copy.copy_(source), 9)


def random_unet(family: Family, quick: bool) -> UNet2DConditionModel:
    """A UNet with random fp16 weights, on the CPU."""
    if quick:
        unet = demo_models(family, seed=0)["unet"].half()
    else:
        unet = full_size_modules(family)["unet"].half().to_empty(device="cpu")
        block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul_(0.03).half()
        for weight in unet.parameters():
            repeats = -(-weight.numel() // len(block))
            weight.detach().view(-1).copy_(block.repeat(repeats)[: weight.numel()])
    assert isinstance(unet, UNet2DConditionModel)
    return unet.eval().requires_grad_(False)


def write_lora(path: Path, unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Write a random LoRA in diffusers' names, fp16."""
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, Tensor] = {}
    for target in linear_targets("unet", unet):
        out_features, in_features = unet.get_parameter(target.parameter).shape
        name = f"unet.{target.parameter.removesuffix('.weight')}"
        down = torch.randn(rank, in_features, generator=generator).div_(rank**0.5)
        up = torch.randn(out_features, rank, generator=generator).mul_(0.003)
        factors |= {f"{name}.lora_A.weight": down.half(), f"{name}.lora_B.weight": up.half()}
    save_file(factors, path)


def scaled(adapters: Sequence[Adapter]) -> list[ScaledAdapter]:
    return [
        ScaledAdapter(adapter=adapter, unet_scale=_SCALE, text_encoder_scale=_SCALE)
        for adapter in adapters
    ]


def time_ours(
    unet: UNet2DConditionModel, family: Family, paths: Sequence[Path], times: int
) -> dict[str, float]:
    """Time our switches; `paths` has one more file than a set has adapters."""
    naming = Naming(family, {"unet": unet})
    state = MergedState(
        {"unet": unet}, device_budget_bytes=0, merged_cache_bytes=0, verify_every=2**60
    )

    def load(files: Sequence[Path]) -> list[Adapter]:
        return [load_adapter(path, naming).adapter for path in files]

    def time_cached() -> tuple[float, float, float]:
        adapters = load(paths)
        one, other = scaled(adapters[:-1]), scaled(adapters[1:])
        seconds: list[tuple[float, float, float]] = []
        for _ in range(times):
            state.switch(one)
            change_s = least_cpu_s(lambda: state.switch(other), 1)
            same_s = least_cpu_s(lambda: state.switch(other[::-1]), 100)
            seconds.append((change_s, same_s, least_cpu_s(lambda: state.switch(()), 1)))
        change, same, restore = zip(*seconds, strict=True)
        return min(change), min(same), min(restore)

    change_s, same_s, restore_s = time_cached()
    changed_bytes = state.saved_bytes.device
    cold_s = least_cpu_s(lambda: state.switch(scaled(load(paths[1:]))), 1)
    state.switch(())
    return {
        "changed_bytes": changed_bytes,
        "restore_s": restore_s,
        "change_s": change_s,
        "same_s": same_s,
        "cold_s": cold_s,
    }


def time_back(unet: UNet2DConditionModel, family: Family, paths: Sequence[Path]) -> float:
    """Seconds of a change to a set whose merged weights are cached."""
    naming = Naming(family, {"unet": unet})
    state = MergedState(
        {"unet": unet}, device_budget_bytes=0, merged_cache_bytes=2**40, verify_every=2**60
    )
    merged_before = scaled([load_adapter(path, naming).adapter for path in paths])
    seconds: list[float] = []
    for _ in range(4):
        seconds.append(least_cpu_s(lambda: state.switch(merged_before), 1))
        state.switch(())
    return min(seconds[1:])


def measure(family: Family, quick: bool, bytes_per_s: float) -> Iterator[Row]:
    """Yield one row for each rank and number of LoRAs."""
    unet = random_unet(family, quick)
    for rank in (4,) if quick else (8, 32, 128):
        with TemporaryDirectory() as folder:
            paths = [Path(folder) / f"lora{index}.safetensors" for index in range(4)]
            for seed, path in enumerate(paths):
                write_lora(path, unet, rank, seed)
            for count in (1,) if quick else (1, 2, 3):
                back_s = time_back(unet, family, paths[:count])
                ours = time_ours(unet, family, paths[: count + 1], times=3)
                theirs = time_diffusers(unet, family, paths[:count], _SCALE, times=2)
                gc.collect()
                floor_s = ours["changed_bytes"] / bytes_per_s
                yield {
                    "family": family,
                    "rank": rank,
                    "loras": count,
                    "floor_s": floor_s,
                    **ours,
                    "back_s": back_s,
                    **theirs,
                    "restore/floor": ours["restore_s"] / floor_s,
                    "change/floor": ours["change_s"] / floor_s,
                    "diffusers/change": theirs["diffusers_s"] / ours["change_s"],
                    "diffusers/back": theirs["diffusers_s"] / back_s,
                    "diffusers/same": theirs["diffusers_s"] / ours["same_s"],
                    "diffusers/cold": theirs["diffusers_cold_s"] / ours["cold_s"],
                }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time switches of LoRAs.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--family", choices=_FAMILIES, action="append")
    arguments = parser.parse_args()
    families = cast("Sequence[Family]", arguments.family or _FAMILIES)
    # diffusers warns about missing text encoders, PEFT about a second adapter.
    diffusers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bytes_per_s = copied_bytes_per_s()
    rows: list[Row] = []
    for family in families:
        for row in measure(family, arguments.quick, bytes_per_s):
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            rows.append(row)
    if not arguments.quick:
        notes = f"CPU seconds on one thread; {bytes_per_s / 1e9:.1f} GB/s copied"
        report("switch", rows, notes)


if __name__ == "__main__":
    main()
