"""Networks that restore an aligned face."""

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
    """A restorer network, in float32: it is small, and none supports half precision."""

    def __init__(self, name: str, architecture: Architecture, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.architecture: Architecture = architecture
        self.network = network

    def forward(self, face: Tensor, fidelity: float) -> Tensor:
        """Restore a face.

        The networks are called directly because spandrel's wrapper feeds GFPGAN and CodeFormer
        [0, 1] although they were trained on [-1, 1], and clamps their output to [0, 1].

        Args:
            face: `(1, 3, 512, 512)` in [-1, 1].
            fidelity: used by CodeFormer only.

        Returns:
            The same shape and range.

        Raises:
            CorruptFile: the output contains NaN or infinity.
        """
        match self.architecture:
            case "GFPGAN":
                # Uses the noise stored in the file: with fresh noise, as in A1111, no picture is
                # reproducible.
                restored = self.network(face, return_rgb=False, randomize_noise=False)[0]
            case "RestoreFormer":
                restored = self.network(face)[0]
            case "CodeFormer":
                restored = self.network(face, weight=fidelity)[0]
        if not torch.isfinite(restored).all():
            raise CorruptFile(f"face restorer {self.name}: its output is not finite")
        return restored.clamp(-1, 1)


def load_restorer(path: Path) -> Restorer:
    """Load a restorer file, on the CPU.

    Raises:
        FileUnavailable: the file cannot be opened.
        CorruptFile: it is damaged, contains Python objects, or is not a restorer.
    """
    weights = canonicalize_state_dict(read_weights(path))
    architecture = detect_architecture(frozenset(weights), path)
    try:
        network = _LOADERS[architecture]().load(weights).model
    except Exception as error:  # spandrel guesses sizes from shapes: a bad file fails in any way
        raise CorruptFile(f"face restorer {path.name}: {first_sentence(error)}") from error
    return Restorer(path.stem, architecture, network.eval().requires_grad_(False))


def _codeformer() -> SpandrelArchitecture[nn.Module]:
    # `resolve_faces` has checked that the extra is installed.
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormerArch

    return cast("SpandrelArchitecture[nn.Module]", CodeFormerArch())


_LOADERS: dict[Architecture, Callable[[], SpandrelArchitecture[nn.Module]]] = {
    "GFPGAN": cast("Callable[[], SpandrelArchitecture[nn.Module]]", GFPGANArch),
    "RestoreFormer": cast("Callable[[], SpandrelArchitecture[nn.Module]]", RestoreFormerArch),
    "CodeFormer": _codeformer,
}
