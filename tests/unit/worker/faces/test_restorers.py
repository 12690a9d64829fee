"""Each restorer architecture, built by spandrel at its smallest size with random weights.

GFPGAN and CodeFormer have only one size: 350 and 290 MB, written and deleted here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.RestoreFormer import RestoreFormer
from torch import Tensor, nn

from imagefleet_worker.faces.restorer import Restorer, load_restorer

pytestmark = pytest.mark.filterwarnings(
    # spandrel_extra_arches, at import
    "ignore:`torch.jit.script` is deprecated:FutureWarning",
)


def _gfpgan() -> nn.Module:
    network = GFPGAN()
    # Nonzero, as in trained networks: at the initial 0, noise would have no effect.
    for name, each in network.named_parameters():
        if name.startswith("stylegan_decoder.style_conv") and each.numel() == 1:
            nn.init.constant_(each, 0.1)
    return network


def _restoreformer() -> nn.Module:
    return RestoreFormer(
        n_embed=16, embed_dim=32, ch=32, ch_mult=(1,) * 6, num_res_blocks=1, z_channels=32
    )


def _codeformer() -> nn.Module:
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    network = CodeFormer(
        dim_embd=64, n_layers=1, codebook_size=16, connect_list=["32", "64"], fix_modules=None
    )
    network.apply(network._init_weights)  # pyright: ignore[reportPrivateUsage]
    return network


def save_and_load(build: Callable[[], nn.Module], folder: Path) -> Iterator[Restorer]:
    torch.manual_seed(0)
    path = folder / "face.pth"
    torch.save({"params_ema": build().state_dict()}, path)
    restorer = load_restorer(path)
    path.unlink()
    yield restorer


@pytest.fixture(scope="module")
def gfpgan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restorer]:
    yield from save_and_load(_gfpgan, Path(tmp_path_factory.mktemp("gfpgan")))


@pytest.fixture(scope="module")
def restoreformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restorer]:
    yield from save_and_load(_restoreformer, Path(tmp_path_factory.mktemp("restoreformer")))


@pytest.fixture(scope="module")
def codeformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restorer]:
    yield from save_and_load(_codeformer, Path(tmp_path_factory.mktemp("codeformer")))


@pytest.fixture
def face() -> Tensor:
    ramp = torch.linspace(-1, 1, 512).expand(1, 3, 512, 512).clone()
    ramp[:, 1] *= -1
    return ramp


@torch.no_grad()
def test_gfpgan_works_in_minus_one_to_one_and_is_deterministic(
    gfpgan: Restorer, face: Tensor
) -> None:
    """spandrel's own call passes it [0, 1]; fresh noise would differ each time."""
    assert gfpgan.architecture == "GFPGAN"
    restored = gfpgan(face, 0.5)
    assert restored.shape == face.shape
    direct = gfpgan.network(face, randomize_noise=False)[0]
    assert torch.equal(restored, direct.clamp(-1, 1))
    assert direct.min() < -0.1
    assert torch.equal(gfpgan(face, 0.5), restored)
    assert not torch.equal(gfpgan.network(face)[0], direct)


@torch.no_grad()
def test_restoreformer_works_in_minus_one_to_one(restoreformer: Restorer, face: Tensor) -> None:
    assert restoreformer.architecture == "RestoreFormer"
    restored = restoreformer(face, 0.5)
    assert restored.shape == face.shape
    assert torch.equal(restored, restoreformer.network(face)[0].clamp(-1, 1))
    assert torch.equal(restoreformer(face, 1.0), restored)


@torch.no_grad()
def test_codeformer_uses_the_fidelity(codeformer: Restorer, face: Tensor) -> None:
    assert codeformer.architecture == "CodeFormer"
    clean, true = codeformer(face, 0.0), codeformer(face, 1.0)
    assert clean.shape == face.shape
    assert not torch.equal(clean, true)
    assert torch.equal(true, codeformer.network(face, weight=1.0)[0].clamp(-1, 1))
