"""A checkpoint's prediction type, and whether its noise schedule has zero terminal SNR.

Both end up in the config of the pipeline's scheduler: ``prediction_type`` ("epsilon" or
"v_prediction") and ``rescale_betas_zero_snr``. The weights do not reveal them; files state them by:

- empty marker tensors, ``v_pred`` and ``ztsnr``: A1111, ComfyUI, and the checkpoints trained with
  both (NoobAI). A1111 honors ``ztsnr`` with or without the other;
- metadata: ModelSpec's ``modelspec.prediction_type`` is "v" or "epsilon" (kohya writes it too),
  ComfyUI writes ``modelspec.predict_key``. A marker tensor overrides "epsilon" in the metadata,
  which some tools write by default.
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
    """The scheduler settings that a single-file checkpoint states."""
    stated = {header.metadata.get(key, "").strip().lower() for key in _METADATA}
    predicts_v = V_MARKER in header.tensors or not stated.isdisjoint(_V)
    return {
        "prediction_type": "v_prediction" if predicts_v else "epsilon",
        "rescale_betas_zero_snr": ZERO_SNR_MARKER in header.tensors,
    }


def complete_prediction(scheduler: Any, folder_name: str) -> None:  # noqa: ANN401 one of many
    """Make the defaults explicit in the scheduler config of a diffusers folder.

    Raises:
        CorruptFile: the noise schedule (EDM, flow matching) or prediction type is unsupported.
    """
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or prediction not in _KNOWN:
        raise CorruptFile(
            f"{folder_name} has a {type(scheduler).__name__} that predicts {prediction!r}; "
            f"supported are schedules of betas with {' or '.join(sorted(_KNOWN))}"
        )
    # Only some schedulers have this setting; if absent, it is false.
    rescaled = bool(config.get("rescale_betas_zero_snr", False))
    scheduler.register_to_config(prediction_type=prediction, rescale_betas_zero_snr=rescaled)
