"""`python -m localfleet up | down | demo | status`: a fleet on this machine."""

import argparse
import logging
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from localfleet.environment import child_environment
from localfleet.fleet import REPOSITORY, Fleet, Home, read_environment, start, stop
from localfleet.process import StartFailed
from localfleet.servers import ServerMissing

_DEMO_STOP_TIMEOUT_S = 10


def up(home: Home) -> int:
    """Start the fleet, unless it is running."""
    with home.locked():
        fleet, started = _ensure_up(home)
    print(
        "The fleet is up." if started else "The fleet is up already.", _hints(home, fleet), sep="\n"
    )
    return 0


def down(home: Home) -> int:
    """Stop the fleet, if it is running."""
    with home.locked():
        print("The fleet is down." if stop(home) else "No fleet was up.")
    return 0


def demo(home: Home) -> int:
    """Run the demo on the fleet; a fleet that was not up before is stopped again."""
    with home.locked():
        fleet, started = _ensure_up(home)
    print(f"Flower shows the fleet at {fleet.flower_url}")
    try:
        return _run_demo(read_environment(home))
    finally:
        if started:
            with home.locked():
                stop(home)


def status(home: Home) -> int:
    """Show which processes run; returns 1 unless all of them do."""
    fleet = home.fleet()
    if fleet is None:
        print("No fleet is up.")
        return 1
    for process in fleet.processes:
        state = "runs" if process.alive else "has ended"
        print(f"{process.name:8}{state:10} pid {process.pid}, log in {process.log}")
    return 0 if fleet.alive else 1


def _ensure_up(home: Home) -> tuple[Fleet, bool]:
    """The fleet, and whether it had to be started; a partly running fleet is stopped first."""
    fleet = home.fleet()
    if fleet is not None and fleet.alive and home.environment.exists():
        return fleet, False
    stop(home)
    return start(home), True


def _run_demo(environment: dict[str, str]) -> int:
    """Run the demo of any fleet, then the gallery of the demo's own models."""
    commands = (
        [str(Path(sys.executable).with_name("imagefleet")), "demo", "--out", "out"],
        [sys.executable, str(REPOSITORY / "tools/demo_gallery.py"), "out"],
    )
    return next((status for command in commands if (status := _run(command, environment)) != 0), 0)


def _run(command: list[str], environment: dict[str, str]) -> int:
    with subprocess.Popen(command, env=child_environment(environment)) as child:
        try:
            return child.wait()
        except (KeyboardInterrupt, SystemExit) as exc:
            # Ctrl-C has reached the demo too; SIGTERM has not.
            if isinstance(exc, SystemExit):
                child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_DEMO_STOP_TIMEOUT_S)
            child.kill()
            raise


def _hints(home: Home, fleet: Fleet) -> str:
    environment = _from_here(home.environment)
    program = _from_here(Path(sys.executable).with_name("imagefleet"))
    return f"""  Flower   {fleet.flower_url}
  enqueue  . {environment} && {program} generate "a red fox"
  stop     make down"""


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def main() -> int:
    """Run the command line; returns the exit status."""
    commands = {"up": up, "down": down, "demo": demo, "status": status}
    parser = argparse.ArgumentParser(
        prog="python -m localfleet", description="A fleet on this machine."
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument(
        "--home", type=Path, default=REPOSITORY / ".local", help="where it keeps its data"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("localfleet").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return commands[arguments.command](Home(arguments.home))
    except (StartFailed, ServerMissing) as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
