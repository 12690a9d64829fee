"""The spool: images that wait on local disk for the object store."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import time

import pytest

from imagefleet_worker.jobs.encode import EncodedImage
from imagefleet_worker.jobs.spool import Spool

IMAGES = [
    EncodedImage(b"first \0 file", "png", 64, 128, 7),
    EncodedImage(b"", "webp", 1, 1, None),
]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "not" / "there" / "yet")


def test_saved_images_are_loaded_even_by_another_process(tmp_path: Path) -> None:
    Spool(tmp_path).save("job", IMAGES)
    assert Spool(tmp_path).load("job") == IMAGES


def test_jobs_do_not_mix(spool: Spool) -> None:
    spool.save("one", IMAGES[:1])
    spool.save("two", IMAGES[1:])
    assert spool.load("one") == IMAGES[:1]
    assert spool.load("two") == IMAGES[1:]
    assert spool.load("three") is None


def test_deleted_images_are_gone(spool: Spool, tmp_path: Path) -> None:
    spool.save("job", IMAGES)
    spool.delete("job")
    assert spool.load("job") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    spool.delete("job")


def test_the_first_of_two_saves_wins(spool: Spool) -> None:
    spool.save("job", IMAGES)
    spool.save("job", IMAGES[:1])
    assert spool.load("job") == IMAGES


def test_a_folder_without_its_list_counts_as_nothing(spool: Spool, tmp_path: Path) -> None:
    """Given a write that was broken off, as by a crash before the list was written."""
    spool.save("job", IMAGES)
    [listing] = tmp_path.rglob("pictures.json")
    listing.unlink()
    assert spool.load("job") is None


@pytest.mark.parametrize("damaged", ["pictures.json", "0", "1"])
def test_images_are_loaded_completely_or_not_at_all(
    spool: Spool, tmp_path: Path, damaged: str
) -> None:
    spool.save("job", IMAGES)
    [file] = tmp_path.rglob(damaged)
    file.unlink()
    assert spool.load("job") is None


@pytest.mark.parametrize("damaged", ["pictures.json", "0"])
@pytest.mark.parametrize("left", [b"", b"first", bytes(12), b"[[1, 2]]", b"null", b"\xff"])
def test_files_damaged_by_a_crash_of_the_host_are_not_loaded(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str, left: bytes
) -> None:
    """Files that were renamed before they were on the disk come back empty, short, or as zeros: the
    job failed at an empty listing, and a file cut short was delivered."""
    spool.save("job", IMAGES)
    [file] = tmp_path.rglob(damaged)
    file.write_bytes(left)
    assert spool.load("job") is None
    assert "spooled images of job job are unusable" in caplog.text
    # Images that are rendered again replace them.
    spool.save("job", IMAGES)
    assert spool.load("job") == IMAGES


def test_a_job_goes_on_if_the_disk_takes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    spool = Spool(blocked)
    spool.save("job", IMAGES)
    assert spool.load("job") is None
    assert "in memory only" in caplog.text


# In a process of its own: the limit holds for whatever a process writes, its output too.
WRITER_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from imagefleet_worker.jobs.encode import EncodedImage
from imagefleet_worker.jobs.spool import Spool
folder, on_limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.Handlers[on_limit])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))
Spool(Path(folder)).save("job", [EncodedImage(b"a long file", "png", 64, 64, 7)])
"""


def write_on_a_full_disk(folder: Path, on_limit: signal.Handlers) -> int:
    """The exit status of a process that saves images where no file can exceed 5 bytes."""
    arguments = [str(folder), on_limit.name]
    command = [sys.executable, "-c", WRITER_ON_A_FULL_DISK, *arguments]
    written = subprocess.run(command, check=False, capture_output=True, text=True)
    killed = on_limit is signal.SIG_DFL
    assert killed or "File too large" in written.stderr
    return written.returncode


def test_partial_files_are_deleted_when_the_disk_is_full(tmp_path: Path) -> None:
    """Half-written images stayed for ever, so that the disk stayed full."""
    assert write_on_a_full_disk(tmp_path, signal.SIG_IGN) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_second_attempt_leaves_no_second_copy(tmp_path: Path) -> None:
    """An attempt that loaded spooled images and met an outage again left another copy."""
    Spool(tmp_path).save("job", IMAGES)
    Spool(tmp_path).save("job", IMAGES)
    assert [folder.name for folder in tmp_path.iterdir()] == ["job"]


DAY_S = 24 * 3600


def make_old(folder: Path) -> None:
    then_s = time() - DAY_S - 60
    os.utime(folder, (then_s, then_s))


def test_images_older_than_a_day_are_deleted_at_start_and_at_each_save(tmp_path: Path) -> None:
    """Jobs that ended elsewhere left their images for ever; so did writes cut off by a kill."""
    spool = Spool(tmp_path)
    spool.save("lost", IMAGES)
    spool.save("recent", IMAGES)
    make_old(tmp_path / "lost")
    Spool(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["recent"]
    make_old(tmp_path / "recent")
    spool.save("new", IMAGES)
    assert [folder.name for folder in tmp_path.iterdir()] == ["new"]


def test_a_write_cut_off_by_a_kill_is_deleted_after_a_day(tmp_path: Path) -> None:
    assert write_on_a_full_disk(tmp_path, signal.SIG_DFL) == -signal.SIGXFSZ
    [unfinished] = tmp_path.iterdir()
    Spool(tmp_path)
    assert unfinished.exists()
    make_old(unfinished)
    Spool(tmp_path)
    assert not unfinished.exists()


def test_old_folders_of_others_are_not_deleted(tmp_path: Path) -> None:
    """Our compose file has the lock files of GPUs in a folder of the spool."""
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "gpu-0").touch()
    make_old(locks)
    Spool(tmp_path)
    assert (locks / "gpu-0").exists()
