"""What a worker counts, for Prometheus: served on a port of its own where one is set."""

from prometheus_client import Counter, Gauge, Histogram, start_http_server

JOBS = Counter("imagefleet_jobs", "Jobs that ended here.", ["kind", "outcome"])
STAGE_SECONDS = Histogram(
    "imagefleet_stage_seconds",
    "Time of each stage of a batch on the device.",
    ["stage"],
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
BATCH_JOBS = Histogram(
    "imagefleet_batch_jobs", "Jobs drawn together.", buckets=(1, 2, 4, 8, 16, 32)
)
BATCHES_SPLIT = Counter(
    "imagefleet_batches_split", "Batches that failed and were run again in halves.", ["error"]
)
PASSED_OVER = Histogram(
    "imagefleet_passed_over",
    "Of each job: batches that ran before it though a later job led them.",
    buckets=(0, 1, 2, 4, 8),
)
SHARE = Gauge(
    "imagefleet_share", "Jobs that this worker may hold now, of what waits, before their pictures."
)

VAE_UPCASTS = Counter(
    "imagefleet_vae_upcasts", "VAEs that overflowed in half precision and went on in float32."
)
SWITCHES = Counter("imagefleet_adapter_switches", "Changes of the adapters that are on.")
REWRITTEN = Counter("imagefleet_adapter_weights_rewritten", "Weights computed by changes.")
RESTORED = Counter("imagefleet_adapter_weights_restored", "Weights copied back by changes.")
CORRUPTED = Counter(
    "imagefleet_state_corrupted", "Restores that were not bit for bit; the checkpoint was reloaded."
)
ADAPTER_HITS = Gauge("imagefleet_adapter_cache_hits", "Adapters found there.", ["place"])
ADAPTER_MISSES = Gauge("imagefleet_adapter_cache_misses", "Adapters brought there.", ["place"])
ADAPTER_BYTES = Gauge("imagefleet_adapter_cache_bytes", "Memory that adapters take.", ["place"])
MERGED_BYTES = Gauge(
    "imagefleet_merged_cache_bytes", "Memory of kept merged weights of the pipeline used last."
)
ORIGINALS_BYTES = Gauge(
    "imagefleet_originals_bytes", "Memory of saved weights of the pipeline used last.", ["place"]
)
MODEL_FETCHES = Counter("imagefleet_model_fetches", "Models fetched from the bucket.")
MODEL_FETCHED_BYTES = Counter("imagefleet_model_fetched_bytes", "Bytes fetched for them.")
MODEL_DISK_BYTES = Gauge("imagefleet_model_disk_bytes", "Local disk that fetched models take.")
PIPELINES = Counter(
    "imagefleet_pipelines", "Checkpoints that batches asked for, by where they were.", ["tier"]
)
PIPELINE_BYTES = Gauge("imagefleet_pipeline_bytes", "Memory of kept checkpoints.", ["tier"])


def serve(port: int) -> None:
    """Answer Prometheus on every interface.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port)
