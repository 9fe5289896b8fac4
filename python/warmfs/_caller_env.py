"""The caller's environment, as far as a remote may need it: what ``CallerEnv`` of
``src/config.rs`` takes along.

Its values are secrets. They are put into a request at the socket and nowhere else: not into
the command line, a file, a child's environment or anything that is printed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# How the clouds' own variables begin, all of which are taken along.
PREFIXES = ("AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_", "AIS_")

# Those that name proxies, and what is reached without one.
PROXIES = (
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
)

# What is taken along besides.
NAMES = (
    "WARMFS_CREDENTIALS",
    "WARMFS_CUSTOMER_KEY",
    # Where programs that are run for the caller begin.
    "PWD",
    "HOME",
    # Programs that are run for the caller are the caller's.
    "PATH",
    "REQUESTS_CA_BUNDLE",
    "GCE_METADATA_HOST",
    "STORAGE_EMULATOR_HOST",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
)

# Those of them that name a file or a folder: the daemon works in another folder.
PATHS = (
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUDSDK_CONFIG",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "AZURE_CONFIG_DIR",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AIS_AUTHN_TOKEN_FILE",
    "AIS_CLIENT_CA",
    "AIS_CRT",
    "AIS_CRT_KEY",
)


class CallerEnv(dict[str, str]):
    """Variables whose values do not print."""

    def __repr__(self) -> str:
        return f"CallerEnv({', '.join(self)})"


def of_process(secrets: Mapping[str, str]) -> CallerEnv:
    """What remotes may need of this process's environment, and ``secrets`` over it."""
    variables = {
        name: _absolute(value) if name in PATHS else value
        for name, value in _variables(secrets).items()
        if name in NAMES or name in PROXIES or name.startswith(PREFIXES)
    }
    return CallerEnv((name, value) for name, value in variables.items() if _is_text(value))


def _variables(secrets: Mapping[str, str]) -> dict[str, str]:
    """Services may have no home, and what a shell says of the folder need not be so."""
    home = {"HOME": os.path.expanduser("~")}
    return {**home, **os.environ, "PWD": os.getcwd(), **secrets}


def _absolute(path: str) -> str:
    """`~/` is the home, which is the remote's to look up."""
    return path if not path or path.startswith("~") else os.path.join(os.getcwd(), path)


def _is_text(value: str) -> bool:
    """What is not UTF-8 is left out."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
