"""What fails, and what to do about it: one exception class for each thing a caller can do next.

The text of an exception is the daemon's own sentence with its hint, as the command line
prints it. A class stands for a few of the daemon's codes; what no class stands for is a
plain :class:`WarmfsError`. Nothing here knows how to talk to a daemon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional


class WarmfsError(Exception):
    """Something failed. ``str()`` is one line: the cause and the next step.

    ``code`` is the daemon's word for the kind of failure, such as ``"busy"``.
    """

    code = "internal"

    def __init__(self, message: str, hint: Optional[str] = None, code: Optional[str] = None):
        self.message = _one_line(message)
        self.hint = _one_line(hint) if hint else None
        self.code = code or type(self).code
        super().__init__(f"{self.message}: {self.hint}" if self.hint else self.message)

    def _render_traceback_(self) -> list[str]:
        """A notebook shows the sentence; the frames below it would be ours."""
        return [f"{type(self).__name__}: {self}"]


class InvalidError(WarmfsError):
    """The request can never succeed as it is: a wrong URI, path or option."""

    code = "invalid"


class MountPointError(WarmfsError):
    """The mount point cannot be used: in use, not empty, not a folder."""

    code = "mount-point"


class BusyError(WarmfsError):
    """A process keeps the mount busy, or the daemon has enough to do."""

    code = "busy"


class NotMountedError(WarmfsError):
    """There is no such mount, or the path is in none."""

    code = "not-mounted"


class NotFoundError(WarmfsError):
    """There is no such bucket, prefix or object."""

    code = "not-found"


class StaleError(WarmfsError):
    """The object is no longer the version that was opened."""

    code = "stale"


class DeniedError(WarmfsError):
    """The store or the operating system refuses, for lack of credentials or rights."""

    code = "denied"


class UnreachableError(WarmfsError):
    """The store cannot be reached."""

    code = "unreachable"


class MachineError(WarmfsError):
    """This machine lacks something: FUSE, a disk, a daemon that answers."""

    code = "environment"


class DaemonGoneError(WarmfsError):
    """The daemon ended, or is about to. The next mount starts another one."""

    code = "shutting-down"


class UnsupportedError(WarmfsError):
    """The daemon is of another version, or does not know this request yet."""

    code = "incompatible"


_CLASSES = {
    cls.code: cls
    for cls in (
        InvalidError,
        MountPointError,
        BusyError,
        NotMountedError,
        NotFoundError,
        StaleError,
        DeniedError,
        UnreachableError,
        MachineError,
        DaemonGoneError,
        UnsupportedError,
    )
}

# The command line prints sentences without their codes. These are the parts of its own
# sentences that tell them apart; the first that matches counts.
_SENTENCES = (
    (r"no connection: |the connection broke", "unreachable"),
    (r"answered 40[13]\b|(?<!keeps the )credentials", "denied"),
    (r"/dev/fuse|fusermount3|cache directory /", "environment"),
    (r"is in use by|is not empty: |is not a folder: choose|overlap: choose", "mount-point"),
    (r"is busy, ", "busy"),
    (r"is not a warmfs mount|no daemon serves|is in no mount of|is not mounted", "not-mounted"),
    (r"answered 404\b|there is no such |holds no objects", "not-found"),
    (
        r"is in use with another|is not a URI: |is not supported: |names no valid|^error: ",
        "invalid",
    ),
)


# How a sentence of the command line begins.
_MARKS = ("warmfs: ", "error: ")


def from_reply(reply: Mapping[str, Any]) -> WarmfsError:
    """The exception for an error that a daemon answered with."""
    code = str(reply.get("code", "internal"))
    cls = _CLASSES.get(code, WarmfsError)
    hint = reply.get("hint")
    return cls(str(reply.get("message", code)), str(hint) if hint else None, code)


def from_command(text: str) -> WarmfsError:
    """The exception for what the command line printed on stderr: its last sentence. What
    stands before is progress, what stands behind an ``error:`` how it is used.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if line.startswith(_MARKS)] or lines
    line = lines[-1] if lines else "the command failed without a word"
    code = next((code for pattern, code in _SENTENCES if re.search(pattern, line)), "internal")
    mark = next((mark for mark in _MARKS if line.startswith(mark)), "")
    return from_reply({"message": line[len(mark) :], "code": code})


def _one_line(text: str) -> str:
    """Control characters as spaces: parts of a sentence are a store's own words."""
    return "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)
