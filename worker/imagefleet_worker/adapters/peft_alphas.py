"""Reads LoRA alphas from metadata, where diffusers stores them: PEFT files have no alpha tensor."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.adapters.delta import Component
from imagefleet_worker.adapters.kinds.tensors import MetadataAlpha

_FIELD = "lora_adapter_metadata"


class _LoraConfig(BaseModel):
    """The relevant fields of PEFT's `LoraConfig`; the rank is known from the tensors."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False


class PeftAlphas:
    """Alphas by component and module.

    Args:
        metadata: of the file.
        file_name: for messages.

    Raises:
        CorruptFile: the field is present but cannot be parsed.
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

    def of(self, component: Component, module: str) -> MetadataAlpha | None:
        """The alpha of a module; None if the metadata has none.

        Args:
            module: name as in the file, with dots.
        """
        config = self._configs.get(component)
        if config is None or config.lora_alpha is None:
            return None
        alpha = config.lora_alpha
        # PEFT treats the patterns as regular expressions matched from a dot to the end; diffusers
        # writes plain names, and an untrusted expression could backtrack forever.
        for pattern, module_alpha in config.alpha_pattern.items():
            if f".{module}".endswith(f".{pattern}"):
                alpha = module_alpha
                break
        return MetadataAlpha(alpha, rank_stabilized=config.use_rslora)
