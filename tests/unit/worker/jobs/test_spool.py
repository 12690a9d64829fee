"""Pictures that wait on local disk for the object store."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import time

import pytest

from imagefleet_worker.jobs.encode import Picture
from imagefleet_worker.jobs.spool import Spool

PICTURES = [
    Picture(b"first \0 file", "png", 64, 128, 7),
    Picture(b"", "webp", 1, 1, None),
]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "not" / "there" / "yet")


def test_what_was_kept_is_found_again_even_by_another_process(tmp_path: Path) -> None:
    Spool(tmp_path).save("job", PICTURES)
    assert Spool(tmp_path).load("job") == PICTURES


def test_jobs_do_not_mix(spool: Spool) -> None:
    spool.save("one", PICTURES[:1])
    spool.save("two", PICTURES[1:])
    assert spool.load("one") == PICTURES[:1]
    assert spool.load("two") == PICTURES[1:]
    assert spool.load("three") is None


def test_what_was_dropped_is_gone(spool: Spool, tmp_path: Path) -> None:
    spool.save("job", PICTURES)
    spool.delete("job")
    assert spool.load("job") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    spool.delete("job")


def test_kept_twice_the_first_stays(spool: Spool) -> None:
    spool.save("job", PICTURES)
    spool.save("job", PICTURES[:1])
    assert spool.load("job") == PICTURES


def test_a_folder_without_its_list_counts_as_nothing(spool: Spool, tmp_path: Path) -> None:
    """Given a write that was broken off, as by a crash before the list was written."""
    spool.save("job", PICTURES)
    [listing] = tmp_path.rglob("pictures.json")
    listing.unlink()
    assert spool.load("job") is None


@pytest.mark.parametrize("damaged", ["pictures.json", "0", "1"])
def test_pictures_are_found_whole_or_not_at_all(spool: Spool, tmp_path: Path, damaged: str) -> None:
    spool.save("job", PICTURES)
    [file] = tmp_path.rglob(damaged)
    file.unlink()
    assert spool.load("job") is None


@pytest.mark.parametrize("damaged", ["pictures.json", "0"])
@pytest.mark.parametrize("left", [b"", b"first", bytes(12), b"[[1, 2]]", b"null", b"\xff"])
def test_what_a_crash_of_the_host_left_is_not_delivered(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str, left: bytes
) -> None:
    """Files that were renamed before they were on the disk come back empty, short, or as zeros: the
    job failed at an empty listing, and a file cut short was delivered."""
    spool.save("job", PICTURES)
    [file] = tmp_path.rglob(damaged)
    file.write_bytes(left)
    assert spool.load("job") is None
    assert "kept pictures of job job are of no use" in caplog.text
    # What is drawn anew is kept in their place.
    spool.save("job", PICTURES)
    assert spool.load("job") == PICTURES


def test_a_disk_that_takes_nothing_costs_only_the_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    spool = Spool(blocked)
    spool.save("job", PICTURES)
    assert spool.load("job") is None
    assert "in memory only" in caplog.text


# In a process of its own: the limit holds for whatever a process writes, its output too.
WRITER_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from imagefleet_worker.jobs.encode import Picture, Spool
folder, beyond_the_limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.Handlers[beyond_the_limit])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))
Spool(Path(folder)).keep("job", [Picture(b"a long file", "png", 64, 64, 7)])
"""


def write_on_a_full_disk(folder: Path, beyond_the_limit: signal.Handlers) -> int:
    """The exit status of a process that keeps pictures where no file grows beyond 5 bytes."""
    arguments = [str(folder), beyond_the_limit.name]
    command = [sys.executable, "-c", WRITER_ON_A_FULL_DISK, *arguments]
    written = subprocess.run(command, check=False, capture_output=True, text=True)
    killed = beyond_the_limit is signal.SIG_DFL
    assert killed or "File too large" in written.stderr
    return written.returncode


def test_a_disk_that_runs_full_is_given_back_what_was_written(tmp_path: Path) -> None:
    """Half-written pictures stayed for ever, so that the disk stayed full."""
    assert write_on_a_full_disk(tmp_path, signal.SIG_IGN) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_second_attempts_copy_is_not_left_beside_the_first(tmp_path: Path) -> None:
    """An attempt that found kept pictures and met an outage again left another copy."""
    Spool(tmp_path).save("job", PICTURES)
    Spool(tmp_path).save("job", PICTURES)
    assert [folder.name for folder in tmp_path.iterdir()] == ["job"]


DAY_S = 24 * 3600


def grow_old(folder: Path) -> None:
    then_s = time() - DAY_S - 60
    os.utime(folder, (then_s, then_s))


def test_what_has_lain_for_a_day_goes_when_a_worker_starts_or_keeps_more(tmp_path: Path) -> None:
    """Jobs that others ended left their pictures for ever; so did writes cut off by a kill."""
    spool = Spool(tmp_path)
    spool.save("lost", PICTURES)
    spool.save("recent", PICTURES)
    grow_old(tmp_path / "lost")
    Spool(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["recent"]
    grow_old(tmp_path / "recent")
    spool.save("new", PICTURES)
    assert [folder.name for folder in tmp_path.iterdir()] == ["new"]


def test_a_write_cut_off_by_a_kill_goes_after_a_day(tmp_path: Path) -> None:
    assert write_on_a_full_disk(tmp_path, signal.SIG_DFL) == -signal.SIGXFSZ
    [unfinished] = tmp_path.iterdir()
    Spool(tmp_path)
    assert unfinished.exists()
    grow_old(unfinished)
    Spool(tmp_path)
    assert not unfinished.exists()


def test_old_folders_of_others_stay(tmp_path: Path) -> None:
    """Our compose file has the marks of taken GPUs in a folder of the spool."""
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "gpu-0").touch()
    grow_old(locks)
    Spool(tmp_path)
    assert (locks / "gpu-0").exists()
