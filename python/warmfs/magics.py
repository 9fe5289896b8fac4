"""``%load_ext warmfs``: the command line's verbs in a cell, and what a cell's reads cost.

::

    %warmfs mount s3://bucket/prefix /content/data --cache-size 20G
    %warmfs status
    %%warmfs epoch cold
    train()

A verb runs without a terminal, its output comes as it is printed, and an interrupt of the
cell ends it. ``mount`` is :func:`warmfs.mount`, so that Colab's secrets are found.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import Any, Optional

from . import _binary, _epoch, _mount, _options
from ._errors import InvalidError
from ._mount import Mount


def warmfs(line: str, cell: Optional[str] = None, shell: Any = None) -> Optional[Mount]:
    """The magic: ``%warmfs VERB …``, or ``%%warmfs epoch [NAME]`` over a cell."""
    words = _split(line)
    if cell is not None:
        _run_epoch(words, cell, shell)
        return None
    if not words:
        raise InvalidError("%warmfs needs a verb", "such as %warmfs status")
    if words[0] == "mount":
        return _run_mount(words[1:])
    _stream(words)
    return None


def register(ipython: Any) -> None:
    """Adds the magic to a shell."""

    def magic(line: str, cell: Optional[str] = None) -> Optional[Mount]:
        return warmfs(line, cell, ipython)

    ipython.register_magic_function(magic, "line_cell", "warmfs")


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InvalidError(f"%warmfs {line}: {error}", "close the quotes") from None


def _run_epoch(words: list[str], cell: str, shell: Any) -> None:
    if words[:1] != ["epoch"]:
        raise InvalidError("%%warmfs over a cell measures it", "write %%warmfs epoch")
    with _epoch.epoch(" ".join(words[1:]) or None) as measured, _held_back(shell) as traceback:
        result = shell.run_cell(cell)
    print(measured)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        # Raised once more it stops "run all", and is shown this time, without our frames.
        if traceback:
            with contextlib.suppress(AttributeError):
                error._render_traceback_ = lambda: traceback
        raise error


@contextlib.contextmanager
def _held_back(shell: Any) -> Iterator[list[str]]:
    """What a shell would show of an error, line by line."""
    lines: list[str] = []
    shown = vars(shell).get("_showtraceback")
    shell._showtraceback = lambda _kind, _error, traceback: lines.extend(traceback)
    try:
        yield lines
    finally:
        del shell._showtraceback
        if shown is not None:
            shell._showtraceback = shown


def _run_mount(words: list[str]) -> Mount:
    arguments, options = _options.parse(words)
    if len(arguments) not in (1, 2):
        raise InvalidError("mount takes a URI and a folder", "%warmfs mount s3://BUCKET DIR")
    return _mount.mount(*arguments, **options)


def _stream(words: list[str]) -> None:
    """Runs a verb and prints its output as it comes, but for the sentence it fails with."""
    failure = ""
    with _binary.start(words, merged=True) as child:
        try:
            for line in child.stdout or ():
                output = line.decode(errors="replace")
                if failure or _is_failure(words[0], output):
                    failure += output
                else:
                    print(output, end="")
        finally:
            _binary.end(child)
    if child.returncode == 0:
        print(failure, end="")
    _binary.check(words[0], child.returncode, failure)


def _is_failure(verb: str, output: str) -> bool:
    """Whether a line is the sentence of an error, and not of progress."""
    if output.startswith("warmfs: "):
        return not output.startswith(f"warmfs: {verb}: ")
    return output.startswith("error: ")
