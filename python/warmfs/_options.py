"""The options of a mount, as Python writes them: what each becomes on the command line, and
in a mount request at the socket.

The command line's own parser checks them. The second form is for a mount with Colab's
secrets, which must not pass through a command line; it has the same meaning, defaults and
``WARMFS_*`` variables, and a test holds the two together.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Callable, TypedDict, Union

from ._errors import InvalidError

Size = Union[int, str]
"""Bytes, or text such as ``"20G"``."""

Time = Union[int, float, str, timedelta]
"""Seconds, or text such as ``"1h"`` or ``"inf"``."""

Text = Union[str, "os.PathLike[str]"]


class Options(TypedDict, total=False):
    """Options of :func:`warmfs.mount`; each is the command line's option of that name."""

    endpoint_url: str
    """Endpoint to use instead of the cloud's own."""
    region: str
    """The bucket's region; discovered where it is not given."""
    profile: str
    """Profile of the AWS configuration."""
    no_sign_request: bool
    """Read a public bucket without credentials."""
    requester_pays: bool
    """Pay for requests to a requester-pays bucket."""
    billing_project: str
    """Project that pays for requests to ``gs://``."""
    virtual_host_style: bool
    """``BUCKET.HOST`` instead of ``HOST/BUCKET`` at the endpoint."""
    ca_file: Text
    """Certificates to trust besides the system's."""
    credential_command: str
    """Command that prints credentials as JSON; see ``docs/credentials.md``."""
    customer_key_file: Text
    """Key of your own that objects are stored with."""
    origin: str
    """Cloud bucket to read where the ``ais://`` cluster cannot."""
    cache_dir: Text
    """Where to keep what was read; ``~/.cache/warmfs``."""
    cache_size: Size
    """Most to keep; by default what is free, less a reserve."""
    memory_limit: Size
    """Most bytes in flight; 10 % of the memory, at most 256 MiB."""
    metadata_memory: Size
    """Most memory for names; 48 MiB."""
    metrics_listen: str
    """``ADDRESS:PORT`` at which Prometheus finds the metrics."""
    metrics_public: bool
    """Let that address be one of other machines."""
    warm: str
    """Fetch ahead: ``auto``, ``off`` or ``all``."""
    max_bandwidth: Size
    """Most bytes a second from the remote."""
    max_requests: int
    """Most requests at once; found out where it is not given."""
    max_download: Size
    """Fetch nothing ahead past so many bytes."""
    max_download_strict: bool
    """Refuse readers too past ``max_download``."""
    no_hedge: bool
    """Never ask a second time for what is late."""
    verify_remote: bool
    """Compare what came with the store's checksums."""
    metadata_ttl: Time
    """How long a listing is trusted; one hour."""
    allow_other: bool
    """Let other users read."""
    noexec: bool
    """Let no program be run from the mount."""
    uid: int
    """Owner of every file; you."""
    gid: int
    """Group of every file; yours."""
    file_mode: Union[int, str]
    """Permissions of files; 0o444."""
    dir_mode: Union[int, str]
    """Permissions of folders; 0o555."""
    open_mode: str
    """``auto``, ``passthrough`` or ``cached``."""
    index: Text
    """Take the listing from a file of ``warmfs index export``, or its URI."""
    log_file: Text
    """Where the daemon logs; ``warmfs.log`` in the cache directory."""
    log_format: str
    """How its lines look: ``text`` or ``json``."""
    no_supervisor: bool
    """Start no other daemon if this one dies."""


NAMES = tuple(Options.__annotations__)

SWITCHES = (
    "no_sign_request",
    "requester_pays",
    "virtual_host_style",
    "max_download_strict",
    "no_hedge",
    "verify_remote",
    "allow_other",
    "noexec",
    "no_supervisor",
    "metrics_public",
)

# What belongs to the cache's daemon and not to one mount of it.
DAEMON = (
    "cache_dir",
    "cache_size",
    "memory_limit",
    "metadata_memory",
    "metrics_listen",
    "metrics_public",
    "log_file",
    "log_format",
    "no_supervisor",
)

_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}

# What `inf` stands for, as the command line has it: a hundred years.
_FOREVER_S = 100 * 365 * 86_400


def flags(options: Mapping[str, Any]) -> list[str]:
    """The command line's form. Raises :class:`InvalidError` for a name that is none."""
    words = []
    for name, value in options.items():
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`warmfs mount --help-all` lists them"
            raise InvalidError(f"mount() has no option {name!r}", hint)
        flag = "--" + name.replace("_", "-")
        if name in SWITCHES:
            words += [flag] if value else []
        elif value is not None:
            words.append(f"{flag}={_text(name, value)}")
    return words


def parse(words: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """What a command line means: the arguments that are no options, and the options."""
    rest: list[str] = []
    options: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not word.startswith("-"):
            rest.append(word)
        elif not word.startswith("--") or name not in NAMES:
            raise InvalidError(f"`mount` here has no option {word}", "use `!warmfs mount` for it")
        elif name in SWITCHES:
            options[name] = True
        elif equals or queue:
            options[name] = value if equals else queue.pop(0)
        else:
            raise InvalidError(f"{word} needs a value")
    return rest, options


def request(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields ``index`` and ``options`` of a mount request; see ``src/config.rs``."""
    options = {**_from_environment(), **{k: v for k, v in given.items() if v is not None}}

    def get(name: str, parse: Callable[[str], Any], default: Any = None) -> Any:
        return parse(_text(name, options[name])) if name in options else default

    def switch(name: str) -> bool:
        return bool(options.get(name))

    remote = {
        "endpoint_url": get("endpoint_url", str),
        "region": get("region", str),
        "profile": get("profile", str),
        "no_sign_request": switch("no_sign_request"),
        "requester_pays": switch("requester_pays"),
        "virtual_host_style": switch("virtual_host_style"),
        "billing_project": get("billing_project", str),
        "ca_file": get("ca_file", os.path.abspath),
        "customer_key_file": get("customer_key_file", os.path.abspath),
        "credential_command": get("credential_command", str),
        "origin": get("origin", str),
    }
    traffic = {
        "max_bandwidth": get("max_bandwidth", _bytes),
        "max_requests": get("max_requests", _number),
        "max_download": get("max_download", _bytes),
        "max_download_strict": switch("max_download_strict"),
        "no_hedge": switch("no_hedge"),
        "verify_remote": switch("verify_remote"),
    }
    look = {
        "metadata_ttl": {"secs": get("metadata_ttl", _seconds, 3_600), "nanos": 0},
        "allow_other": switch("allow_other"),
        "noexec": switch("noexec"),
        "uid": get("uid", _number, os.getuid()),
        "gid": get("gid", _number, os.getgid()),
        "file_mode": get("file_mode", _mode, 0o444),
        "dir_mode": get("dir_mode", _mode, 0o555),
        "open_mode": get("open_mode", str, "auto"),
        "record_trace": None,
        "warm": get("warm", str, "auto"),
    }
    return {
        "index": get("index", _index),
        "options": {"remote": remote, "traffic": traffic, **look},
    }


def _from_environment() -> dict[str, Any]:
    variables = {name: os.environ.get(f"WARMFS_{name.upper()}", "") for name in NAMES}
    off = {name for name in SWITCHES if variables[name].lower() in ("0", "false", "no", "off")}
    return {name: value for name, value in variables.items() if value and name not in off}


def _text(name: str, value: Any) -> str:
    """A value as the command line has it."""
    if name.endswith("_mode") and isinstance(value, int):
        return f"{value:o}"
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, float):
        return str(round(value)) if math.isfinite(value) else str(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)i?b?", text.strip().lower())
    try:
        return int(float(found[1]) * (1 << _UNITS[found[2]])) if found else _wrong(text, "a size")
    except ValueError:
        return _wrong(text, "a size")


def _seconds(text: str) -> int:
    if text.strip() == "inf":
        return _FOREVER_S
    found = re.fullmatch(r"([0-9]+)\s*([a-z]*)", text.strip())
    if not found or found[2] not in _SECONDS:
        return _wrong(text, "a duration")
    return min(int(found[1]) * _SECONDS[found[2]], _FOREVER_S)


def _number(text: str) -> int:
    return int(text) if text.strip().isdigit() else _wrong(text, "a number")


def _mode(text: str) -> int:
    return int(text, 8) if re.fullmatch(r"[0-7]{1,4}", text) else _wrong(text, "an octal mode")


def _index(text: str) -> dict[str, str]:
    return {"uri": text} if "://" in text else {"file": os.path.abspath(text)}


def _wrong(text: str, what: str) -> int:
    raise InvalidError(f"{text!r} is not {what}")
