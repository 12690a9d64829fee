"""What restoring faces takes of the host's memory, seen from a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

from tests.face_models import portrait, write_face_models

SIDE_PX = 3000
HELD = """
import re, sys
from pathlib import Path
import torch
from PIL import Image
from imagefleet_shared.request_parts import FaceRestore
from imagefleet_worker.faces.networks import FaceNetworks
from imagefleet_worker.faces.resolved import resolve_faces
from imagefleet_worker.faces.restore import FaceRestorer
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.progress import Stages

def peak_bytes():
    # Not by getrusage: that begins with the parent's memory.
    return int(re.findall(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

faces = resolve_faces(FaceRestore(restorer="tiny"), ModelStore(Path(sys.argv[1])))
restorer = FaceRestorer(FaceNetworks(torch.device("cpu"), 10**9))
stages = Stages([lambda stage, step, steps: None])
small = Image.open(sys.argv[2])
large = Image.new("RGB", (int(sys.argv[3]),) * 2, "teal")
large.paste(small)
with torch.no_grad():
    restorer.restore([small], faces, stages)
    before = peak_bytes()
    [restored] = restorer.restore([large], faces, stages)
assert restored is not large, "there was no face"
print("held", peak_bytes() - before)
"""


def test_a_small_face_takes_little_of_a_large_pictures_size(tmp_path: Path) -> None:
    """It took 75 bytes of each of the picture's pixels; of that, the networks had used some before,
    for the small picture."""
    write_face_models(tmp_path)
    portrait(SIDE_PX // 3)[0].save(tmp_path / "small.png")
    arguments = [str(tmp_path), str(tmp_path / "small.png"), str(SIDE_PX)]
    done = subprocess.run(
        [sys.executable, "-c", HELD, *arguments], check=True, capture_output=True, text=True
    )
    [held] = re.findall(r"held (\d+)", done.stdout)
    assert int(held) < 15 * SIDE_PX**2
