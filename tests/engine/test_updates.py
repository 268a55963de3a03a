"""News of updates is believed only with the right signature, and changes nothing by itself."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.engine.wheel_parts import list_of
from zk0desk import __version__
from zk0desk.control import NodeControl
from zk0desk.engine import artefact as artefact_module
from zk0desk.engine import lists, updates
from zk0desk.engine.artefact import Artefact
from zk0desk.engine.errors import EngineBusy, EngineListError, EngineUnreachable, EngineWrongContent

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def feed(server) -> updates.Feed:
    return updates.Feed(f"{server.url}/feed.json", KEY.public_key().public_bytes_raw())


@pytest.fixture
def publish(shelf, server, wheels, monkeypatch):
    """Puts a feed on the server that names a later version and a mended engine; returns its payload for changes."""
    monkeypatch.setattr(updates, "artefact", lambda: Artefact("0.1.0", "deb", True))

    def put(key: Ed25519PrivateKey = KEY, **changes) -> None:
        system, arch = lists.this_system()
        text = list_of(wheels, server.url).to_text().encode()
        (shelf / "list.json").write_bytes(text)
        where = {"system": system, "arch": arch}
        package = {**where, "format": "deb", "url": "https://example.org/zk0desk.deb", "size": 61_000_000, "sha256": "ab" * 32}
        engine = {**where, "for-version": __version__, "backend": "cpu", "url": f"{server.url}/list.json", "size": len(text)}
        payload = {
            "schema": 1,
            "version": "99.1",
            "notes": "Faster.",
            "artefacts": [{**package, "format": "tar"}, package],
            "engines": [{**engine, "sha256": hashlib.sha256(text).hexdigest()}],
        } | changes
        (shelf / "feed.json").write_text(updates.sign(payload, key))

    return put


def look(feed: updates.Feed, backend: str | None = "cpu", busy: bool = False) -> updates.Update:
    return updates.look(feed, backend, busy=busy, control=NodeControl())


def test_a_later_version_and_a_mended_engine_are_told(feed, publish, wanted):
    publish()
    found = look(feed)
    assert (found.version, found.newer, found.notes) == ("99.1", True, "Faster.")
    assert found.artefact == updates.Download("https://example.org/zk0desk.deb", 61_000_000, "ab" * 32)
    assert found.engine is not None and found.engine.id == wanted.id
    assert look(feed, "cu130").engine is None


@pytest.mark.parametrize(("version", "newer"), [("0.0.9", False), (__version__, False), ("0.10", True), ("1", True)])
def test_only_a_later_version_is_newer(feed, publish, version, newer):
    publish(version=version)
    assert look(feed).newer is newer


def test_another_signature_or_a_changed_word_is_not_believed(feed, publish, shelf):
    publish(key=Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(EngineWrongContent, match="is not believed"):
        look(feed)
    publish()
    told = json.loads((shelf / "feed.json").read_text())
    for changed in ({**told, "payload": told["payload"].replace("99.1", "99.2")}, {**told, "signature": "AA=="}, {"payload": "{}"}, []):
        (shelf / "feed.json").write_text(json.dumps(changed))
        with pytest.raises(EngineWrongContent, match="is not believed"):
            look(feed)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1.0; rm"},
        {"artefacts": [{"system": "linux"}]},
        {"artefacts": None},
        {"engines": [{"for-version": __version__}]},
    ],
)
def test_a_signed_feed_that_cannot_be_read_is_told(feed, publish, changes):
    publish(**changes)
    with pytest.raises(EngineWrongContent, match="cannot be read"):
        look(feed)


def test_a_list_that_is_not_the_signed_one_is_refused(feed, publish, shelf):
    publish()
    (shelf / "list.json").write_bytes((shelf / "list.json").read_bytes().replace(b"small", b"smaII"))
    with pytest.raises(EngineListError, match="not the one that was signed"):
        look(feed)


def test_nothing_is_asked_while_a_node_is_joined(feed, publish, server):
    publish()
    with pytest.raises(EngineBusy, match="not looked for now"):
        look(feed, busy=True)
    assert not server.requests


def test_a_feed_that_cannot_be_reached_is_told(feed, server):
    server.stop()
    with pytest.raises(EngineUnreachable, match="cannot be fetched"):
        look(feed)


def test_the_feed_is_the_one_that_the_artefact_names_or_none(tmp_path, monkeypatch):
    assert updates.feed() is None
    path = tmp_path / "feed.json"
    monkeypatch.setattr(updates, "resource", lambda name: tmp_path / name)
    key = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    for told, there in (
        ({"url": "https://example.org/feed.json", "key": key}, True),
        ({"url": "http://example.org/feed.json", "key": key}, False),
        ({"url": "https://example.org/feed.json", "key": "c2hvcnQ="}, False),
        ({"url": "https://example.org/feed.json"}, False),
    ):
        path.write_text(json.dumps(told))
        assert (updates.feed() is not None) is there


def test_a_checkout_is_no_artefact(tmp_path, monkeypatch):
    artefact_module.artefact.cache_clear()
    assert artefact_module.artefact() is None
    monkeypatch.setattr(artefact_module, "resource", lambda name: tmp_path / name)
    (tmp_path / "artefact.json").write_text(
        json.dumps({"version": "0.1.0", "format": "deb", "release": False, "stamp": "not for release: why"})
    )
    artefact_module.artefact.cache_clear()
    assert artefact_module.artefact() == Artefact("0.1.0", "deb", False, "not for release: why")
    artefact_module.artefact.cache_clear()
