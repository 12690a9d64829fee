"""Networks that draw an aligned face anew."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from spandrel import Architecture as SpandrelArchitecture
from spandrel import canonicalize_state_dict
from spandrel.architectures.GFPGAN import GFPGANArch
from spandrel.architectures.RestoreFormer import RestoreFormerArch
from torch import Tensor, nn

from imagefleet_shared.errors import CorruptFile
from imagefleet_worker.weights.face_architecture import Architecture, detect_architecture
from imagefleet_worker.weights.upscaler_tensors import first_sentence, read_weights

DEFAULT_FIDELITY = 0.5


class Restorer(nn.Module):
    """One restorer, in float32: they are small, and none of them bears half precision."""

    def __init__(self, name: str, architecture: Architecture, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.architecture: Architecture = architecture
        self.network = network

    def forward(self, face: Tensor, fidelity: float) -> Tensor:
        """The face drawn anew.

        The networks are called past spandrel's own call, which gives GFPGAN and CodeFormer [0, 1]
        where they were trained on [-1, 1], and cuts what they return to [0, 1].

        Args:
            face: `(1, 3, 512, 512)` in [-1, 1].
            fidelity: heeded by CodeFormer.

        Returns:
            The same shape and range.

        Raises:
            CorruptFile: the network gives NaN or infinity.
        """
        match self.architecture:
            case "GFPGAN":
                # Its noise as the file has it: drawn anew, as A1111 does, no picture comes twice.
                drawn = self.network(face, return_rgb=False, randomize_noise=False)[0]
            case "RestoreFormer":
                drawn = self.network(face)[0]
            case "CodeFormer":
                drawn = self.network(face, weight=fidelity)[0]
        if not torch.isfinite(drawn).all():
            raise CorruptFile(f"face restorer {self.name}: its output is not finite")
        return drawn.clamp(-1, 1)


def load_restorer(path: Path) -> Restorer:
    """Load a restorer's file, on the CPU.

    Raises:
        FileUnavailable: the file cannot be opened.
        CorruptFile: it is damaged, asks for Python objects, or is no restorer.
    """
    weights = canonicalize_state_dict(read_weights(path))
    architecture = detect_architecture(frozenset(weights), path)
    try:
        network = _LOADERS[architecture]().load(weights).model
    except Exception as error:  # spandrel guesses sizes from shapes: a bad file fails in any way
        raise CorruptFile(f"face restorer {path.name}: {first_sentence(error)}") from error
    return Restorer(path.stem, architecture, network.eval().requires_grad_(False))


def _codeformer() -> SpandrelArchitecture[nn.Module]:
    # Only where the extra is installed, which `parts.py` has seen to.
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormerArch

    return cast("SpandrelArchitecture[nn.Module]", CodeFormerArch())


_LOADERS: dict[Architecture, Callable[[], SpandrelArchitecture[nn.Module]]] = {
    "GFPGAN": cast("Callable[[], SpandrelArchitecture[nn.Module]]", GFPGANArch),
    "RestoreFormer": cast("Callable[[], SpandrelArchitecture[nn.Module]]", RestoreFormerArch),
    "CodeFormer": _codeformer,
}
