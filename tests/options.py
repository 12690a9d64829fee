"""Plain pipeline options, for tests that are not about options."""

from imagefleet_worker.device.presets import Options

PLAIN = Options(
    channels_last=False,
    attention="sdpa",
    compile=False,
    cuda_graphs=False,
    vae_tiling=False,
    offload="none",
)
