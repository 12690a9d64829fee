"""Warm pipelines of the demo's checkpoints."""

from pathlib import Path

import pytest
import torch

from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.weights.families import Family
from tests.options import PLAIN


@pytest.fixture(scope="session")
def warm_pipelines(demo_models: Path) -> dict[Family, WarmPipeline]:
    store = ModelStore(demo_models)
    cache = PipelineCache(store, torch.device("cpu"), torch.float32, PLAIN, 2**40, 2**40, 0, 1)
    sd1 = cache.get(store.find("checkpoint", "demo"))
    # As in a trained CLIP the hidden states have a mean. Without a bias it is 0 but for rounding,
    # and the factor by which "original" emphasis restores it differs from processor to processor.
    sd1.pipeline.text_encoder.final_layer_norm.bias.data.fill_(0.1)
    return {"sd1": sd1, "sdxl": cache.get(store.find("checkpoint", "demo-xl"))}


@pytest.fixture(params=["sd1", "sdxl"])
def warm(
    request: pytest.FixtureRequest, warm_pipelines: dict[Family, WarmPipeline]
) -> WarmPipeline:
    return warm_pipelines[request.param]


@pytest.fixture
def sd1(warm_pipelines: dict[Family, WarmPipeline]) -> WarmPipeline:
    return warm_pipelines["sd1"]


@pytest.fixture
def sdxl(warm_pipelines: dict[Family, WarmPipeline]) -> WarmPipeline:
    return warm_pipelines["sdxl"]
