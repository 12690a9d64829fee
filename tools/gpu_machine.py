"""Print the machine and the versions that the GPU check runs with; fail where it cannot run.

python -m tools.gpu_machine [--quick]
"""

import argparse
import platform
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "pydantic", "pytest")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the machine and the versions.")
    parser.add_argument("--quick", action="store_true", help="a CPU will do")
    quick: bool = parser.parse_args().quick
    print(f"{platform.platform()}, Python {platform.python_version()}")
    try:
        for package in _PACKAGES:
            print(package, version(package))
        import torch

        # Imports all that a worker needs.
        import_module("imagefleet_worker.build")
    except ImportError as error:
        sys.exit(
            f"{error}: run `make setup`; on a machine without a network, put into .whl what "
            "`make gpu-wheels` fetches on another one"
        )
    if nvidia_smi := shutil.which("nvidia-smi"):
        print(subprocess.run([nvidia_smi], capture_output=True, text=True, check=False).stdout)
    if not torch.cuda.is_available():
        print("torch has no GPU here")
        if not quick:
            sys.exit("the check needs one; `make gpu-check QUICK=1` tries it on a CPU")


if __name__ == "__main__":
    main()
