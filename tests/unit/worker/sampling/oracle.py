"""k-diffusion's own samplers, the second opinion on ours."""

import importlib
import importlib.util
import sys
from types import ModuleType


def k_diffusion(module: str) -> ModuleType:
    """A module of k-diffusion, without the package around it.

    The package's `__init__` imports its training code, and with it a dozen more packages.
    """
    if "k_diffusion" not in sys.modules:
        package = importlib.util.find_spec("k_diffusion")
        assert package is not None, "k-diffusion is not installed"
        stand_in = ModuleType("k_diffusion")
        stand_in.__path__ = list(package.submodule_search_locations or ())
        sys.modules["k_diffusion"] = stand_in
    return importlib.import_module(f"k_diffusion.{module}")
