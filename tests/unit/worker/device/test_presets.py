"""Presets are chosen by GPU memory, and individual settings override them."""

import logging
from pathlib import Path

import pytest
import torch

from imagefleet_shared.errors import WorkerFailure
from imagefleet_worker.device.compile import set_up_compiler
from imagefleet_worker.device.options import options_for
from imagefleet_worker.device.presets import (
    Machine,
    Options,
    Preset,
    choose_options,
    choose_preset,
    pipeline_cache_bytes,
    requested_attention,
)
from imagefleet_worker.settings import WorkerSettings

GIGABYTE = 10**9


def machine(gigabytes: float | None, no_compiler: str | None = None) -> Machine:
    total_bytes = None if gigabytes is None else int(gigabytes * GIGABYTE)
    return Machine(accelerator_bytes=total_bytes, why_no_compiler=lambda: no_compiler)


def options(on: Machine, preset: Preset, **settings: bool | str) -> Options:
    return choose_options(WorkerSettings.model_validate(settings), preset, on, "sdpa")


@pytest.mark.parametrize(
    ("cache_gb", "gpu_gb", "expected_gb"),
    [(None, 80, 16), (None, 12, 8), (None, None, 16), (40.0, 80, 40), (1.0, None, 1)],
)
def test_the_pipeline_cache_is_limited_as_set_or_by_the_gpu(
    cache_gb: float | None, gpu_gb: int | None, expected_gb: int
) -> None:
    """With 12 GB of GPU memory the limit used to be 16 GB, enough for two SDXL checkpoints."""
    settings = WorkerSettings(pipeline_cache_gb=cache_gb)
    gpu_bytes = None if gpu_gb is None else gpu_gb * GIGABYTE
    assert pipeline_cache_bytes(settings, gpu_bytes) == expected_gb * GIGABYTE


@pytest.mark.parametrize(
    ("gigabytes", "preset"),
    [
        (150.1, "fast"),
        (23.6, "fast"),
        (16.9, "balanced"),
        (10.2, "balanced"),
        (8.3, "low_vram"),
        (None, "balanced"),
    ],
)
def test_gpu_memory_determines_the_preset_and_is_the_reason(
    gigabytes: float | None, preset: Preset
) -> None:
    choice = choose_preset("auto", machine(gigabytes))

    assert choice.preset == preset
    assert (f"{gigabytes} GB" if gigabytes else "on the CPU") in choice.reason


@pytest.mark.parametrize("preset", ["fast", "balanced", "low_vram"])
def test_a_preset_that_is_set_is_used(preset: Preset) -> None:
    assert choose_preset(preset, machine(150)).preset == preset


def test_fast_compiles_and_uses_graphs_without_offload() -> None:
    fast = options(machine(24), "fast")

    assert (fast.channels_last, fast.compile, fast.cuda_graphs) == (True, True, True)
    assert (fast.vae_tiling, fast.offload) == (False, "none")


def test_balanced_tiles_the_vae_and_low_vram_also_offloads() -> None:
    balanced, low = (options(machine(12), preset) for preset in ("balanced", "low_vram"))

    assert (balanced.vae_tiling, balanced.offload, balanced.compile) == (True, "none", False)
    assert (low.vae_tiling, low.offload, low.cuda_graphs) == (True, "model", False)


def test_the_cpu_has_no_graphs_no_offload_and_no_channels_last() -> None:
    for preset in ("fast", "balanced", "low_vram"):
        chosen = options(machine(None), preset)
        assert (chosen.cuda_graphs, chosen.offload, chosen.channels_last) == (False, "none", False)


@pytest.mark.parametrize(
    ("gigabytes", "preset", "backend"),
    [(None, "low_vram", "sliced"), (6, "low_vram", "auto"), (None, "balanced", "auto")],
)
def test_attention_is_sliced_if_nothing_else_saves_memory(
    gigabytes: float | None, preset: Preset, backend: str
) -> None:
    assert requested_attention(WorkerSettings(), preset, machine(gigabytes)) == backend


def test_attention_that_is_set_is_requested() -> None:
    settings = WorkerSettings(attention="sdpa")
    assert requested_attention(settings, "low_vram", machine(None)) == "sdpa"


@pytest.mark.parametrize("name", ["channels_last", "compile", "cuda_graphs", "vae_tiling"])
@pytest.mark.parametrize("value", [True, False])
def test_a_setting_overrides_the_preset(name: str, value: bool) -> None:
    for preset in ("fast", "balanced"):
        assert getattr(options(machine(24), preset, **{name: value}), name) is value


def test_fast_without_a_compiler_does_not_compile() -> None:
    assert not options(machine(24, "there is no compiler"), "fast").compile


def test_compile_without_a_compiler_is_refused() -> None:
    with pytest.raises(WorkerFailure, match=r"IMAGEFLEET_COMPILE=true, but there is no compiler"):
        options(machine(24, "there is no compiler"), "balanced", compile=True)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("cuda_graphs", True, "true"),
        ("offload", "model", "model"),
        ("offload", "sequential", "sequential"),
    ],
)
def test_options_that_need_a_gpu_are_refused_on_the_cpu(
    name: str, value: bool | str, shown: str
) -> None:
    with pytest.raises(WorkerFailure, match=f"IMAGEFLEET_{name.upper()}={shown} needs a GPU"):
        options(machine(None), "balanced", **{name: value})


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_graphs_with_offload_are_refused(offload: str) -> None:
    with pytest.raises(WorkerFailure, match=f"IMAGEFLEET_OFFLOAD={offload} exclude each other"):
        options(machine(24), "fast", offload=offload, cuda_graphs=True)


def test_compile_with_sequential_offload_is_refused() -> None:
    with pytest.raises(WorkerFailure, match=r"COMPILE=true and .* exclude each other"):
        options(machine(24), "balanced", offload="sequential", compile=True)


def test_fast_with_offload_disables_what_offload_excludes() -> None:
    model, sequential = (
        options(machine(24), "fast", offload=offload) for offload in ("model", "sequential")
    )
    assert (model.compile, model.cuda_graphs) == (True, False)
    assert (sequential.compile, sequential.cuda_graphs) == (False, False)


def test_the_choice_and_its_reason_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        options_for(torch.device("cpu"), torch.float32, WorkerSettings(preset="low_vram"))

    assert "preset low_vram (as set)" in caplog.text
    assert "attention sliced" in caplog.text
    assert "vae_tiling True" in caplog.text


def test_warm_up_sizes_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEFLEET_WARM_UP_SIZES", "512x768x4,1024x1024x1")
    monkeypatch.setenv("IMAGEFLEET_WARM_UP_CHECKPOINTS", "one,two")
    monkeypatch.setenv("IMAGEFLEET_COMPILE", "false")
    settings = WorkerSettings()

    assert settings.warm_up_sizes == ((512, 768, 4), (1024, 1024, 1))
    assert settings.warm_up_checkpoints == ("one", "two")
    assert settings.compile is False
    assert settings.channels_last is None


def test_a_cache_folder_with_spaces_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailure, match="must have no spaces"):
        set_up_compiler(tmp_path / "two words")

    assert not list(tmp_path.iterdir())
