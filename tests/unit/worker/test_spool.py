"""Pictures that wait on local disk for the object store."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import time

import pytest

from imagefleet_worker.pictures import Picture, Spool

PICTURES = [
    Picture(b"first \0 file", "png", 64, 128, 7),
    Picture(b"", "webp", 1, 1, None),
]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "not" / "there" / "yet")


def test_what_was_kept_is_found_again_even_by_another_process(tmp_path: Path) -> None:
    Spool(tmp_path).keep("job", PICTURES)
    assert Spool(tmp_path).find("job") == PICTURES


def test_jobs_do_not_mix(spool: Spool) -> None:
    spool.keep("one", PICTURES[:1])
    spool.keep("two", PICTURES[1:])
    assert spool.find("one") == PICTURES[:1]
    assert spool.find("two") == PICTURES[1:]
    assert spool.find("three") is None


def test_what_was_dropped_is_gone(spool: Spool, tmp_path: Path) -> None:
    spool.keep("job", PICTURES)
    spool.drop("job")
    assert spool.find("job") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    spool.drop("job")


def test_kept_twice_the_first_stays(spool: Spool) -> None:
    spool.keep("job", PICTURES)
    spool.keep("job", PICTURES[:1])
    assert spool.find("job") == PICTURES


def test_a_folder_without_its_list_counts_as_nothing(spool: Spool, tmp_path: Path) -> None:
    """Given a write that was broken off, as by a crash before the list was written."""
    spool.keep("job", PICTURES)
    [listing] = tmp_path.rglob("pictures.json")
    listing.unlink()
    assert spool.find("job") is None


@pytest.mark.parametrize("damaged", ["pictures.json", "0", "1"])
def test_pictures_are_found_whole_or_not_at_all(spool: Spool, tmp_path: Path, damaged: str) -> None:
    spool.keep("job", PICTURES)
    [file] = tmp_path.rglob(damaged)
    file.unlink()
    assert spool.find("job") is None


def test_a_disk_that_takes_nothing_costs_only_the_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    spool = Spool(blocked)
    spool.keep("job", PICTURES)
    assert spool.find("job") is None
    assert "in memory only" in caplog.text


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 5 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_disk_that_runs_full_is_given_back_what_was_written(tmp_path: Path) -> None:
    """Half-written pictures stayed for ever, so that the disk stayed full."""
    Spool(tmp_path).keep("job", PICTURES)
    assert list(tmp_path.iterdir()) == []


def test_a_second_attempts_copy_is_not_left_beside_the_first(tmp_path: Path) -> None:
    """An attempt that found kept pictures and met an outage again left another copy."""
    Spool(tmp_path).keep("job", PICTURES)
    Spool(tmp_path).keep("job", PICTURES)
    assert [folder.name for folder in tmp_path.iterdir()] == ["job"]


DAY_S = 24 * 3600

KILLED_WRITER = """
import resource, signal, sys
from pathlib import Path
from imagefleet_worker.pictures import Picture, Spool
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))
Spool(Path(sys.argv[1])).keep("job", [Picture(b"a long file", "png", 64, 64, 7)])
"""


def grow_old(folder: Path) -> None:
    then_s = time() - DAY_S - 60
    os.utime(folder, (then_s, then_s))


def test_what_has_lain_for_a_day_goes_when_a_worker_starts_or_keeps_more(tmp_path: Path) -> None:
    """Jobs that others ended left their pictures for ever; so did writes cut off by a kill."""
    spool = Spool(tmp_path)
    spool.keep("lost", PICTURES)
    spool.keep("recent", PICTURES)
    grow_old(tmp_path / "lost")
    Spool(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["recent"]
    grow_old(tmp_path / "recent")
    spool.keep("new", PICTURES)
    assert [folder.name for folder in tmp_path.iterdir()] == ["new"]


def test_a_write_cut_off_by_a_kill_goes_after_a_day(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGXFSZ
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
