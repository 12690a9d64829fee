"""Prometheus metrics of a worker, served on its own port if one is set."""

from prometheus_client import Counter, Gauge, Histogram, start_http_server

JOBS = Counter("imagefleet_jobs", "Jobs that ended on this worker.", ["kind", "outcome"])
STAGE_SECONDS = Histogram(
    "imagefleet_stage_seconds",
    "Time of each stage of a batch on the device.",
    ["stage"],
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
BATCH_JOBS = Histogram(
    "imagefleet_batch_jobs", "Jobs rendered in one batch.", buckets=(1, 2, 4, 8, 16, 32)
)
BATCHES_SPLIT = Counter(
    "imagefleet_batches_split", "Batches that failed and were retried in halves.", ["error"]
)
PASSED_OVER = Histogram(
    "imagefleet_passed_over",
    "Per job: batches that ran before it although they were led by a later job.",
    buckets=(0, 1, 2, 4, 8),
)
SHARE = Gauge(
    "imagefleet_share", "Unrendered jobs that this worker may prefetch now: its fair share."
)

VAE_UPCASTS = Counter(
    "imagefleet_vae_upcasts", "VAEs that overflowed in half precision and were upcast to float32."
)
SWITCHES = Counter("imagefleet_adapter_switches", "Switches of the active adapters.")
REWRITTEN = Counter("imagefleet_adapter_weights_rewritten", "Weights merged by switches.")
RESTORED = Counter("imagefleet_adapter_weights_restored", "Weights restored by switches.")
CORRUPTED = Counter(
    "imagefleet_state_corrupted", "Restores that were not bit-exact; the checkpoint was reloaded."
)
ADAPTER_HITS = Gauge("imagefleet_adapter_cache_hits", "Adapter cache hits.", ["place"])
ADAPTER_MISSES = Gauge("imagefleet_adapter_cache_misses", "Adapter cache misses.", ["place"])
ADAPTER_BYTES = Gauge("imagefleet_adapter_cache_bytes", "Memory of cached adapters.", ["place"])
MERGED_BYTES = Gauge(
    "imagefleet_merged_cache_bytes",
    "Memory of the merged weights cached for the last used pipeline.",
)
ORIGINALS_BYTES = Gauge(
    "imagefleet_originals_bytes",
    "Memory of the original weights saved for the last used pipeline.",
    ["place"],
)
MODEL_FETCHES = Counter("imagefleet_model_fetches", "Models downloaded from the bucket.")
MODEL_FETCHED_BYTES = Counter("imagefleet_model_fetched_bytes", "Bytes of models downloaded.")
MODEL_DISK_BYTES = Gauge("imagefleet_model_disk_bytes", "Local disk that downloaded models take.")
PIPELINES = Counter(
    "imagefleet_pipelines", "Checkpoints that batches used, by the tier they were in.", ["tier"]
)
PIPELINE_BYTES = Gauge("imagefleet_pipeline_bytes", "Memory of cached checkpoints.", ["tier"])


def serve(port: int) -> None:
    """Serve the metrics on every interface.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port)
