"""What a checkpoint's UNet predicts, and whether its noise schedule ends in noise alone.

Both end up in the config of the pipeline's scheduler: ``prediction_type`` ("epsilon" or
"v_prediction") and ``rescale_betas_zero_snr``. Nothing in the weights tells them, so files say it:

- tensors without a value, ``v_pred`` and ``ztsnr``: A1111, ComfyUI, and the checkpoints that were
  trained with both (NoobAI). A1111 heeds ``ztsnr`` with or without the other;
- metadata: ModelSpec's ``modelspec.prediction_type`` is "v" or "epsilon" (kohya writes it too),
  ComfyUI writes ``modelspec.predict_key``. A tensor beats a metadata "epsilon", which savers write
  unasked.
"""

from typing import Any

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.checkpoints.architecture import Config
from imagefleet_worker.weights.safetensors_header import Header

V_MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"

_METADATA = ("modelspec.prediction_type", "modelspec.predict_key")
_V = {"v", "v_prediction"}
_KNOWN = {"epsilon", "v_prediction"}


def prediction_config(header: Header) -> Config:
    """The scheduler's settings that a single file decides."""
    stated = {header.metadata.get(key, "").strip().lower() for key in _METADATA}
    predicts_v = V_MARKER in header.tensors or not stated.isdisjoint(_V)
    return {
        "prediction_type": "v_prediction" if predicts_v else "epsilon",
        "rescale_betas_zero_snr": ZERO_SNR_MARKER in header.tensors,
    }


def complete_prediction(scheduler: Any, folder_name: str) -> None:  # noqa: ANN401 one of many
    """Write into a diffusers folder's scheduler config what it leaves at its default.

    Raises:
        CorruptFile: it is for another kind of noise (EDM, flow matching) or prediction.
    """
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or prediction not in _KNOWN:
        raise CorruptFile(
            f"{folder_name} has a {type(scheduler).__name__} that predicts {prediction!r}; "
            f"supported are schedules of betas with {' or '.join(sorted(_KNOWN))}"
        )
    # Only some schedulers have the second setting; its absence means false.
    rescaled = bool(config.get("rescale_betas_zero_snr", False))
    scheduler.register_to_config(prediction_type=prediction, rescale_betas_zero_snr=rescaled)
