"""Colab's own credentials, asked for only after existing ones and anonymous access were refused.

``gs://`` logs in with ``google.colab.auth``; the other schemes read the notebook's Secrets
(``google.colab.userdata``). Both talk to the browser, which only the main thread of the
kernel can do. What they give goes into one request at the socket; nothing is kept here.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any, NamedTuple, Optional

from ._errors import DeniedError, WarmfsError


class _Names(NamedTuple):
    """Secrets that make up credentials."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


# By scheme, the sets of secrets that are credentials, in the order in which they count.
_SECRETS = {
    "s3": (_Names(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SESSION_TOKEN",)),),
    "az": (
        _Names(("AZURE_STORAGE_CONNECTION_STRING",)),
        _Names(("AZURE_STORAGE_KEY",), ("AZURE_STORAGE_ACCOUNT",)),
        _Names(("AZURE_STORAGE_SAS_TOKEN",)),
        _Names(("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")),
    ),
    "ais": (_Names(("AIS_AUTHN_TOKEN",)),),
}

_SCHEMES = {"abfs": "az", "abfss": "az", "https": "az"}


def ask(uri: str, refusal: Optional[WarmfsError] = None) -> Optional[dict[str, str]]:
    """The credentials that Colab has for a URI, as variables; ``None`` outside Colab, and for
    schemes that have none. What ``gs://`` finds is in the environment afterwards.

    Raises :class:`DeniedError` with what to do if there are none, after ``refusal``.
    """
    scheme = uri.partition("://")[0].lower()
    scheme = _SCHEMES.get(scheme, scheme)
    if "google.colab" not in sys.modules or scheme not in (*_SECRETS, "gs"):
        return None
    if threading.current_thread() is not threading.main_thread():
        raise _denied(refusal, uri, "call it from a cell: Colab asks only in the main thread")
    if scheme == "gs":
        _log_in(uri, refusal)
        return {}
    return _look_up(uri, _SECRETS[scheme], refusal)


def _log_in(uri: str, refusal: Optional[WarmfsError]) -> None:
    auth = importlib.import_module("google.colab.auth")
    try:
        auth.authenticate_user()
    except Exception as error:  # Colab's own, and whatever gcloud says.
        raise _denied(refusal, uri, f"Colab's login failed: {_name(error)}") from None


def _look_up(
    uri: str, choices: tuple[_Names, ...], refusal: Optional[WarmfsError]
) -> dict[str, str]:
    userdata = importlib.import_module("google.colab.userdata")
    for names in choices:
        found = {name: _get(userdata, name, uri, refusal) for name in names.required[:1]}
        if not all(found.values()):
            continue
        rest = (*names.required[1:], *names.optional)
        found.update((name, _get(userdata, name, uri, refusal)) for name in rest)
        missing = [name for name in names.required if not found[name]]
        if not missing:
            return {name: value for name, value in found.items() if value}
        raise _denied(refusal, uri, f"add {' and '.join(missing)} to the notebook's Secrets, too")
    first = " and ".join(choices[0].required)
    raise _denied(refusal, uri, f"add {first} to the notebook's Secrets (the key at the left)")


def _get(userdata: Any, name: str, uri: str, refusal: Optional[WarmfsError]) -> str:
    try:
        return str(userdata.get(name) or "")
    except Exception as error:  # Its classes differ from one Colab to the next.
        if _name(error) == "SecretNotFoundError":
            return ""
        hint = f"give this notebook access to {name} in its Secrets ({_name(error)})"
        raise _denied(refusal, uri, hint) from None


def _name(error: Exception) -> str:
    """Not its text, which may hold what was asked for."""
    return type(error).__name__


def _denied(refusal: Optional[WarmfsError], uri: str, hint: str) -> DeniedError:
    return DeniedError(str(refusal) if refusal else f"{uri} needs credentials", hint)
