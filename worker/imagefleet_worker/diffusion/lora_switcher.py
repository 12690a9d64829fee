"""Keep exactly the LoRAs of the current batch merged into a warm pipeline."""

import logging
from collections.abc import Callable, Sequence

from imagefleet_worker import metrics
from imagefleet_worker.adapters.cache import AdapterCache
from imagefleet_worker.adapters.delta import Adapter
from imagefleet_worker.adapters.formats import load_adapter
from imagefleet_worker.adapters.merge import SwitchReport
from imagefleet_worker.adapters.originals import StateCorrupted
from imagefleet_worker.adapters.scaled import ScaledAdapter
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.checkpoints.pipeline_cache import PipelineCache
from imagefleet_worker.checkpoints.warm_pipeline import WarmPipeline
from imagefleet_worker.requests.resolved import RequestedLoRA
from imagefleet_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


class LoRASwitcher:
    """Switches LoRAs between batches; not thread-safe, used on the engine's thread.

    Args:
        settings: sizes of the adapter cache.
        pipelines: the cache that owns the warm pipelines.
        clear_prompt_cache: called when weights turn out to be corrupted, because prompts encoded
            with them cannot be trusted either.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        pipelines: PipelineCache,
        clear_prompt_cache: Callable[[], None],
    ) -> None:
        self._pipelines = pipelines
        self._clear_prompt_cache = clear_prompt_cache
        self._cache: AdapterCache[tuple[ModelFile, ModelFile]] = AdapterCache(
            self._load,
            pipelines.weights_device,
            host_bytes=int(settings.adapter_cache_gb * 1e9),
            device_bytes=int(settings.device_adapter_gb * 1e9),
        )

    def switch(self, warm: WarmPipeline, loras: Sequence[RequestedLoRA]) -> WarmPipeline:
        """The pipeline with exactly these LoRAs merged; they stay merged until the next switch.

        A pipeline whose weights were not restored bit for bit is reloaded and counted in the
        metrics.

        Raises:
            CorruptFile, FileUnavailable, IncompatibleAdapter: a file cannot be merged; no LoRA is
                merged then.
        """
        adapters = self._scaled(warm, loras)
        if not warm.merged.has(adapters):
            # Before a hires pass the UNet may still be on the device, away from its saved weights.
            self._pipelines.offload_idle()
        try:
            report = warm.merged.switch(adapters)
        except StateCorrupted as exc:
            logger.error("checkpoint %s is reloaded: %s", warm.file.name, exc)
            metrics.CORRUPTED.inc()
            self._pipelines.drop(warm)
            self._clear_prompt_cache()
            warm = self._pipelines.get(warm.file)
            report = warm.merged.switch(adapters)
        self._update_metrics(warm, report)
        return warm

    def _scaled(self, warm: WarmPipeline, loras: Sequence[RequestedLoRA]) -> list[ScaledAdapter]:
        return [
            ScaledAdapter(
                adapter=self._cache.get((lora.file, warm.file)),
                unet_scale=lora.unet_scale,
                text_encoder_scale=lora.text_encoder_scale,
            )
            for lora in loras
        ]

    def _load(self, key: tuple[ModelFile, ModelFile]) -> Adapter:
        lora, checkpoint = key
        return load_adapter(lora.path, self._pipelines.get(checkpoint).naming).adapter

    def _update_metrics(self, warm: WarmPipeline, report: SwitchReport) -> None:
        if report.rewritten or report.restored:
            metrics.SWITCHES.inc()
            metrics.REWRITTEN.inc(report.rewritten)
            metrics.RESTORED.inc(report.restored)
        stats, saved = self._cache.stats, warm.merged.saved_bytes
        for tier, tier_stats in (("host", stats.host), ("device", stats.device)):
            metrics.ADAPTER_HITS.labels(tier).set(tier_stats.hits)
            metrics.ADAPTER_MISSES.labels(tier).set(tier_stats.misses)
            metrics.ADAPTER_BYTES.labels(tier).set(tier_stats.size_bytes)
        metrics.MERGED_BYTES.set(warm.merged.cached_bytes)
        metrics.ORIGINALS_BYTES.labels("device").set(saved.device)
        metrics.ORIGINALS_BYTES.labels("pinned").set(saved.pinned)
