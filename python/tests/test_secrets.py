"""Credentials: what is tried first, who is asked, and where they never are."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest
from conftest import REPOSITORY, World
from store import Store

import warmfs
from warmfs import _caller_env, _secrets

KEY, SECRET = "AKIATHEKEYOFTHETEST", "s3cr3t/that+must.never.be.seen"

OBJECTS = {f"{i}.bin": bytes([i]) * 50_000 for i in range(3)}


class SecretNotFoundError(Exception):
    """As Colab names it."""


class NotebookAccessError(Exception):
    """As Colab names it."""


class Colab:
    """What the tests have of ``google.colab``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.secrets: dict[str, Any] = {}
        self.asked: list[str] = []
        self.logins = 0
        self.on_login: Callable[[], None] = lambda: None
        package, colab = ModuleType("google"), ModuleType("google.colab")
        userdata, auth = ModuleType("google.colab.userdata"), ModuleType("google.colab.auth")
        vars(userdata)["get"] = self._get
        vars(auth)["authenticate_user"] = self._login
        for module in (package, colab, userdata, auth):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _get(self, name: str) -> str:
        self.asked.append(name)
        value = self.secrets.get(name)
        if isinstance(value, Exception):
            raise value
        if value is None:
            raise SecretNotFoundError(name)
        return str(value)

    def _login(self) -> None:
        self.logins += 1
        self.on_login()


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> Colab:
    return Colab(monkeypatch)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    # There is no machine to ask for an identity.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with Store(OBJECTS, KEY) as store:
        yield store


def mount(world: World, store: Store, **options: Any) -> warmfs.Mount:
    """Mounts the store's bucket."""
    options = {"endpoint_url": store.endpoint, "region": "us-east-1", "warm": "off", **options}
    return warmfs.mount("s3://bucket", world.point, **options)


def test_a_public_bucket_asks_nobody(world: World, store: Store, colab: Colab) -> None:
    store.key = None
    data = mount(world, store)
    assert (data.path / "1.bin").read_bytes() == OBJECTS["1.bin"]
    assert not colab.asked


def test_existing_credentials_ask_nobody(
    world: World, store: Store, colab: Colab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert (mount(world, store).path / "1.bin").read_bytes() == OBJECTS["1.bin"]
    assert not colab.asked


def test_outside_colab_a_refusal_is_the_daemons_sentence(world: World, store: Store) -> None:
    with pytest.raises(warmfs.DeniedError, match=r"not readable without credentials"):
        mount(world, store)


def test_the_notebooks_secrets_are_asked_for_once_and_seen_nowhere(
    world: World, store: Store, colab: Colab, capfd: pytest.CaptureFixture[str]
) -> None:
    colab.secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    data = mount(world, store)
    assert (data.path / "1.bin").read_bytes() == OBJECTS["1.bin"]
    assert store.requests[0].endswith(" None"), "anonymous access comes first"
    assert colab.asked == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
    assert [mount.dir for mount in warmfs.status().mounts] == [str(world.point)]
    printed = "".join(capfd.readouterr())
    seen = [printed, repr(data), str(warmfs.status()), repr(os.environ), repr(_all_variables())]
    assert not [text for text in seen if SECRET in text or KEY in text]
    assert not [path for path in _files(world.root) if SECRET.encode() in path.read_bytes()]
    process = Path("/proc", str(world.daemon_pid()))
    for part in ("environ", "cmdline"):
        assert SECRET.encode() not in (process / part).read_bytes()
    data.unmount()
    assert not [path for path in world.root.iterdir() if path.name.startswith("warmfs-")]


def _all_variables() -> _caller_env.CallerEnv:
    return _caller_env.of_process({"AWS_SECRET_ACCESS_KEY": SECRET})


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and "mount" not in path.parts]


def test_a_daemon_that_runs_takes_the_request_with_secrets(
    world: World, store: Store, colab: Colab
) -> None:
    world.fill()
    other = warmfs.mount(world.uri, world.root / "other", warm="off")
    colab.secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    data = mount(world, store)
    assert len(os.listdir(data)) == 3
    assert warmfs.status(other).pid == warmfs.status(data).pid


def test_the_cell_run_again_renews_what_expired(world: World, store: Store, colab: Colab) -> None:
    colab.secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    data = mount(world, store)
    pid = world.daemon_pid()
    store.key = colab.secrets["AWS_ACCESS_KEY_ID"] = "AKIATHENEXTKEY"
    with pytest.raises(PermissionError):
        (data.path / "1.bin").read_bytes()
    again = mount(world, store)
    assert again.existed
    assert (data.path / "1.bin").read_bytes() == OBJECTS["1.bin"]
    assert world.daemon_pid() == pid


def test_running_again_does_not_take_good_credentials_away(
    world: World, store: Store, colab: Colab
) -> None:
    colab.secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    data = mount(world, store)
    for renew in (lambda: mount(world, store), data.renew, lambda: warmfs.login(data)):
        renew()
        name = f"{len(store.requests) % 3}.bin"
        warmfs.evict(data, progress=False)
        with open(data.path / name, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == OBJECTS[name]
        assert store.requests[-1].endswith(KEY)


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        (
            {},
            r"without credentials.*add AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to the note",
        ),
        ({"AWS_ACCESS_KEY_ID": KEY}, r"add AWS_SECRET_ACCESS_KEY to the notebook's Secrets, too"),
        (
            {"AWS_ACCESS_KEY_ID": NotebookAccessError(SECRET)},
            r"give this notebook access to AWS_ACCESS_KEY_ID",
        ),
        ({"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": SECRET}, r"403"),
    ],
)
def test_missing_secrets_are_an_exception_with_what_to_do(
    world: World, store: Store, colab: Colab, secrets: dict[str, Any], text: str
) -> None:
    colab.secrets = secrets
    with pytest.raises(warmfs.DeniedError, match=text) as caught:
        mount(world, store)
    assert SECRET not in str(caught.value)
    with pytest.raises(warmfs.NotMountedError):
        warmfs.status()


def test_another_thread_is_told_to_ask_in_a_cell(world: World, store: Store, colab: Colab) -> None:
    errors = []

    def call() -> None:
        try:
            mount(world, store)
        except warmfs.WarmfsError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
    assert not colab.asked


def test_google_logs_in_once_and_leaves_the_rest_to_the_environment(
    colab: Colab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _secrets.ask("gs://bucket/a") == {}
    assert colab.logins == 1

    def fail() -> None:
        raise RuntimeError(SECRET)

    colab.on_login = fail
    with pytest.raises(warmfs.DeniedError, match=r"login failed: RuntimeError$"):
        _secrets.ask("gs://bucket/a")


def test_each_scheme_has_its_own_secrets(colab: Colab) -> None:
    colab.secrets = {"AZURE_STORAGE_KEY": "k", "AIS_AUTHN_TOKEN": "t"}
    azure = "https://a.blob.core.windows.net/c"
    assert _secrets.ask("az://a/c") == _secrets.ask(azure) == {"AZURE_STORAGE_KEY": "k"}
    assert _secrets.ask("ais://b") == {"AIS_AUTHN_TOKEN": "t"}
    assert _secrets.ask("file:///x") is None


def test_what_is_taken_along_is_what_the_command_line_takes() -> None:
    source = (REPOSITORY / "src/config.rs").read_text()
    lists = {
        "PREFIXES": _caller_env.PREFIXES,
        "NAMES": _caller_env.NAMES,
        "PROXIES": _caller_env.PROXIES,
        "PATHS": _caller_env.PATHS,
    }
    named = dict(re.findall(r"pub const (\w+): &str = \"(\w+)\";", source))
    for name, ours in lists.items():
        theirs = source.partition(f"const {name}: ")[2].partition("= [")[2].partition("];")[0]
        entries = re.findall(r"\"(\w+)\"|Self::(\w+)", theirs)
        assert tuple(text or named[const] for text, const in entries) == ours


def test_paths_are_absolute_and_odd_values_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("AWS_CONFIG_FILE", "here/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~/keys")
    monkeypatch.setenv("AWS_ODD", "\udcff")
    env = _caller_env.of_process({"AWS_PROFILE": "p", "OTHER": "x"})
    assert env["AWS_CONFIG_FILE"] == "/tmp/here/config"
    assert env["AWS_SHARED_CREDENTIALS_FILE"] == "~/keys"
    assert "AWS_ODD" not in env
    assert "OTHER" not in env
    assert "p" not in repr(env).replace("AWS_", "").lower().split(", ")


def test_a_view_is_given_the_secrets_too(world: World, store: Store, colab: Colab) -> None:
    colab.secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    options: dict[str, Any] = {"endpoint_url": store.endpoint, "region": "us-east-1", "warm": "off"}
    data: Any = warmfs.mount("s3://bucket", **options)
    assert data.open("1.bin").read() == OBJECTS["1.bin"]
    assert not data.existed and data.status().view
    assert warmfs.mount("s3://bucket", **options).existed
