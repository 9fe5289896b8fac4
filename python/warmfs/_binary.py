"""The program that the wheel carries: where it is, and how a verb of it is run.

Mounting and whatever needs a daemon that may not run yet is the program's job. It gets no
terminal and none of the notebook's pipes, and every run has a time limit. What is running
when the cell is interrupted is ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Optional

from ._errors import (
    InvalidError,
    MachineError,
    UnreachableError,
    UnsupportedError,
    from_command,
)

# What a remote that answers at all takes to be mounted, retries and the start of a daemon
# that has an index to check included; a little more than the program's own limits.
MOUNT_TIMEOUT_S = 190.0

# How long a program that was told to end may take before it is killed.
END_TIMEOUT_S = 5.0

# The variables that ask for colours where there is no terminal.
COLOURS = ("CLICOLOR_FORCE", "FORCE_COLOR")

# What a shell reports of a command line that is not understood.
USAGE_EXIT_CODE = 2


def find() -> Path:
    """The program: ``WARMFS_BINARY``, the one of this package, or the one on ``PATH``."""
    named = os.environ.get("WARMFS_BINARY")
    if named:
        return Path(named)
    for candidate in _installed():
        if candidate.is_file():
            return candidate
    on_path = shutil.which("warmfs")
    if on_path:
        return Path(on_path)
    raise MachineError(
        "the program `warmfs` is not installed",
        "install the wheel that carries it, or name it in WARMFS_BINARY",
    )


def _installed() -> Iterator[Path]:
    try:
        files = metadata.files("warmfs") or []
    except metadata.PackageNotFoundError:
        files = []
    scripts = (file for file in files if file.parts[-2:] == ("bin", "warmfs"))
    yield from (Path(os.path.normpath(str(file.locate()))) for file in scripts)
    yield Path(sysconfig.get_path("scripts")) / "warmfs"


class Ended(NamedTuple):
    """A run that came to its end."""

    code: int
    out: str
    err: str


def run(args: Sequence[str], timeout_s: float, stdin: Optional[bytes] = None) -> str:
    """Runs a verb to its end and returns what it printed, or raises the exception of its
    sentence.
    """
    ended = finish(args, timeout_s, stdin)
    check(args[0], ended.code, ended.err)
    return ended.out


def finish(args: Sequence[str], timeout_s: float, stdin: Optional[bytes] = None) -> Ended:
    """Runs a verb to its end, whatever that is. Raises :class:`UnreachableError` if it takes
    longer than ``timeout_s`` seconds.
    """
    with start(args) as child:
        try:
            out, err = child.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise UnreachableError(
                f"`warmfs {args[0]}` took longer than {timeout_s:.0f} s",
                "see the daemon's log, warmfs.log in the cache directory",
            ) from None
        finally:
            end(child)
    return Ended(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def check(verb: str, code: int, stderr: str) -> None:
    """Raises what a run that ended with ``code`` is an error of."""
    if code == USAGE_EXIT_CODE and "unrecognized subcommand" in stderr:
        raise UnsupportedError(f"this warmfs has no `{verb}` yet", "install a later version")
    if code != 0:
        raise from_command(stderr)


def start(args: Sequence[str], merged: bool = False) -> subprocess.Popen[bytes]:
    """Starts a verb in a session of its own: an interrupt of the cell reaches us only.

    With ``merged`` its stdout has what it prints on stderr as well.
    """
    try:
        return subprocess.Popen(
            [str(find()), *args],
            stdin=subprocess.DEVNULL if merged else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise MachineError(f"`warmfs` cannot be started: {error}") from None
    except ValueError as error:
        raise InvalidError(f"`warmfs` cannot be started: {error}") from None


def _environment() -> dict[str, str]:
    """Notebooks ask every program for colours, which a sentence must not have."""
    return {name: value for name, value in os.environ.items() if name not in COLOURS}


def end(child: subprocess.Popen[Any]) -> None:
    """Ends a program that still runs, politely first."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
