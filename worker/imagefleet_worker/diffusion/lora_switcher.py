"""Has the LoRAs that a job wants on a warm pipeline, and only those."""

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
    """Switches adapters between batches; for the engine's thread.

    Args:
        forget_encoded: called where weights turn out not to have been what they should: texts that
            they encoded are not to be trusted either.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        pipelines: PipelineCache,
        forget_encoded: Callable[[], None],
    ) -> None:
        self._pipelines = pipelines
        self._forget_encoded = forget_encoded
        self._cache: AdapterCache[tuple[ModelFile, ModelFile]] = AdapterCache(
            self._load,
            pipelines.rest_device,
            host_bytes=int(settings.adapter_cache_gb * 1e9),
            device_bytes=int(settings.device_adapter_gb * 1e9),
        )

    def switch(self, warm: WarmPipeline, loras: Sequence[RequestedLoRA]) -> WarmPipeline:
        """The pipeline with exactly these LoRAs on; they stay on until others are wanted.

        A pipeline whose weights did not come back bit for bit is loaded anew, and counted.

        Raises:
            CorruptFile, FileUnavailable, IncompatibleAdapter: a file cannot be merged; nothing of
                any is on.
        """
        wanted = self._scaled(warm, loras)
        if not warm.merged.has(wanted):
            # Before a hires pass the UNet may still be where it ran, away from its saved weights.
            self._pipelines.offload_idle()
        try:
            report = warm.merged.switch(wanted)
        except StateCorrupted as exc:
            logger.error("checkpoint %s is loaded anew: %s", warm.file.name, exc)
            metrics.CORRUPTED.inc()
            self._pipelines.drop(warm)
            self._forget_encoded()
            warm = self._pipelines.get(warm.file)
            report = warm.merged.switch(wanted)
        self._count(warm, report)
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

    def _count(self, warm: WarmPipeline, report: SwitchReport) -> None:
        if report.rewritten or report.restored:
            metrics.SWITCHES.inc()
            metrics.REWRITTEN.inc(report.rewritten)
            metrics.RESTORED.inc(report.restored)
        stats, saved = self._cache.stats, warm.merged.saved_bytes
        for place, of_place in (("host", stats.host), ("device", stats.device)):
            metrics.ADAPTER_HITS.labels(place).set(of_place.hits)
            metrics.ADAPTER_MISSES.labels(place).set(of_place.misses)
            metrics.ADAPTER_BYTES.labels(place).set(of_place.size_bytes)
        metrics.MERGED_BYTES.set(warm.merged.copied_bytes)
        metrics.ORIGINALS_BYTES.labels("device").set(saved.device)
        metrics.ORIGINALS_BYTES.labels("pinned").set(saved.pinned)
