"""Cache of face networks on the device."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import torch
from spandrel import canonicalize_state_dict
from torch import nn

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.device.errors import ModelDoesNotFit
from imagefleet_worker.faces.parsenet import ParseNet
from imagefleet_worker.faces.restorer import Restorer, load_restorer
from imagefleet_worker.faces.retinaface import RetinaFace
from imagefleet_worker.lru_cache import ByteLRUCache
from imagefleet_worker.weights.upscaler_tensors import first_sentence, read_weights

N = TypeVar("N", bound=nn.Module)

logger = logging.getLogger(__name__)


class FaceNetworks:
    """Detectors, parsers and restorers in float32, up to a number of bytes; not thread-safe.

    Each method raises `FileUnavailable` or `CorruptFile` if the file cannot be loaded, and
    `ModelDoesNotFit` if the device does not have the memory for it.
    """

    def __init__(self, device: torch.device, budget_bytes: int) -> None:
        self.device = device
        self._cache = ByteLRUCache[ModelFile, nn.Module](_size_of, budget_bytes)

    def restorer(self, file: ModelFile) -> Restorer:
        return self._get(file, load_restorer)

    def detector(self, file: ModelFile) -> RetinaFace:
        return self._get(file, _load_detector)

    def parser(self, file: ModelFile) -> ParseNet:
        return self._get(file, _load_parser)

    def _get(self, file: ModelFile, load: Callable[[Path], N]) -> N:
        # A file is only ever loaded as one type: its name says which.
        return cast(N, self._cache.get_or_load(file, lambda: self._load(file, load)))

    def _load(self, file: ModelFile, load: Callable[[Path], N]) -> N:
        started = time.monotonic()
        try:
            network = load(file.path).eval().requires_grad_(False).to(self.device)
        except torch.OutOfMemoryError as error:
            raise ModelDoesNotFit(f"{self.device} has no room for {file.name}") from error
        logger.info(
            "loaded %s in %.2f s",
            file.path.name,
            time.monotonic() - started,
            extra={"action": "load_face_network", "bytes": _size_of(network)},
        )
        return network


def _load_detector(path: Path) -> RetinaFace:
    weights = canonicalize_state_dict(read_weights(path))
    is_resnet = any(name.startswith("body.layer4.") for name in weights)
    return _load_weights(RetinaFace("resnet50" if is_resnet else "mobilenet"), weights, path)


def _load_parser(path: Path) -> ParseNet:
    return _load_weights(ParseNet(), canonicalize_state_dict(read_weights(path)), path)


def _load_weights(network: N, weights: dict[str, torch.Tensor], path: Path) -> N:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CorruptFile(
            f"{path.name}: not the network that its name says; {first_sentence(error)}"
        ) from error
    return network


def _size_of(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
