"""Host memory that face restoration takes, measured in a separate process."""

import re
import subprocess
import sys
from pathlib import Path

from tests.face_models import portrait, write_face_models

SIDE_PX = 3000
SCRIPT = """
import re, sys
from pathlib import Path
import torch
from PIL import Image
from imagefleet_shared.request_parts import FaceRestore
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.resolved import resolve_faces
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.progress import BatchProgress

def peak_bytes():
    # Not getrusage, which starts from the parent's memory.
    return int(re.findall(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

faces = resolve_faces(FaceRestore(restorer="tiny"), ModelStore(Path(sys.argv[1])))
restorer = FaceRestorer(FaceNetworks(torch.device("cpu"), 10**9))
progress = BatchProgress([lambda stage, step, steps: None])
small = Image.open(sys.argv[2])
large = Image.new("RGB", (int(sys.argv[3]),) * 2, "teal")
large.paste(small)
with torch.no_grad():
    restorer.restore([small], faces, progress)
    before = peak_bytes()
    [restored] = restorer.restore([large], faces, progress)
assert restored is not large, "no face was found"
print("growth", peak_bytes() - before)
"""


def test_a_small_face_in_a_large_picture_takes_little_memory(tmp_path: Path) -> None:
    """It once took 75 bytes per pixel of the picture, not counting what the networks had used for
    the small picture before."""
    write_face_models(tmp_path)
    portrait(SIDE_PX // 3)[0].save(tmp_path / "small.png")
    arguments = [str(tmp_path), str(tmp_path / "small.png"), str(SIDE_PX)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], check=True, capture_output=True, text=True
    )
    [growth] = re.findall(r"growth (\d+)", done.stdout)
    assert int(growth) < 15 * SIDE_PX**2
