"""Alphas in a file's metadata: diffusers puts them there, where PEFT's LoRAs have no tensor."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.adapters.kinds.tensors import StatedAlpha

_FIELD = "lora_adapter_metadata"


class _LoraConfig(BaseModel):
    """What counts of PEFT's `LoraConfig`; the rank is read off the tensors."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False


class PeftAlphas:
    """The alphas by component and module.

    Args:
        metadata: the file's.
        file_name: for messages.

    Raises:
        CorruptFile: the field is there but cannot be read.
    """

    def __init__(self, metadata: Mapping[str, str], file_name: str) -> None:
        self._configs: dict[str, _LoraConfig] = {}
        fields: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads(metadata.get(_FIELD, "{}"))
            for key, value in content.items():
                component, _, field = key.partition(".")
                fields.setdefault(component, {})[field] = value
            for component, config in fields.items():
                self._configs[component] = _LoraConfig.model_validate(config)
        except (ValueError, AttributeError, RecursionError, ValidationError) as exc:
            raise CorruptFile(f"{file_name} has a damaged {_FIELD}: {str(exc)[:200]}") from exc

    def of(self, component: Component, module: str) -> StatedAlpha | None:
        """The alpha of a module; None where the metadata has none.

        Args:
            module: as the file names it, with dots.
        """
        config = self._configs.get(component)
        if config is None or config.lora_alpha is None:
            return None
        alpha = config.lora_alpha
        # PEFT reads the patterns as regular expressions that match from a dot to the end; diffusers
        # writes plain names, and a stranger's expression could take forever.
        for pattern, exception in config.alpha_pattern.items():
            if f".{module}".endswith(f".{pattern}"):
                alpha = exception
                break
        return StatedAlpha(alpha, by_root=config.use_rslora)
