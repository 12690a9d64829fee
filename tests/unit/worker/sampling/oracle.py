"""k-diffusion's own samplers, as a reference for ours."""

import importlib
import importlib.util
import sys
from types import ModuleType


def k_diffusion(module: str) -> ModuleType:
    """Import a module of k-diffusion without running the package's `__init__`.

    That imports the training code, and with it a dozen more packages.
    """
    if "k_diffusion" not in sys.modules:
        package = importlib.util.find_spec("k_diffusion")
        assert package is not None, "k-diffusion is not installed"
        stand_in = ModuleType("k_diffusion")
        stand_in.__path__ = list(package.submodule_search_locations or ())
        sys.modules["k_diffusion"] = stand_in
    return importlib.import_module(f"k_diffusion.{module}")
