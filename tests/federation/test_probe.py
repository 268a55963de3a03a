"""Connection troubles are told apart in words."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.federation.node_parts import certificate, invitation
from zk0desk.federation import probe as trouble
from zk0desk.federation.probe import ConnectionTrouble, probe


@contextmanager
def answering(
    tmp_path: Path, *, clock: float = 0.0, status: str = "401 Unauthorized", name: str = "localhost", mute: bool = False
) -> Iterator[int]:
    """A TLS server on loopback whose clock is `clock` seconds off; `mute` never answers the handshake. Gives its port."""
    pem, key = certificate(name)
    (tmp_path / "c.pem").write_text(pem)
    (tmp_path / "k.pem").write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain:
                if mute:
                    ended.wait(10)
                    return
                try:
                    with context.wrap_socket(plain, server_side=True) as secure:
                        secure.recv(65_536)
                        date = formatdate(time.time() + clock, usegmt=True)
                        secure.sendall(f"HTTP/1.1 {status}\r\ndate: {date}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_that_a_federation_that_answers_is_measured(tmp_path: Path) -> None:
    with answering(tmp_path) as port:
        found = probe(invitation(port=port))
    assert 0 < found.latency_ms < 1000
    assert found.tls.startswith("TLSv1.")
    assert found.certificate_sha256 == invitation().certificate_sha256
    assert found.clock_off_s is not None and abs(found.clock_off_s) < 2
    assert found.to_json()["certificate-sha256"] == found.certificate_sha256


def test_that_an_unknown_name_is_told_from_a_closed_port() -> None:
    with pytest.raises(trouble.NameNotFound, match="no.such.invalid"):
        probe(invitation(host="no.such.invalid"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(trouble.Refused, match=f"127.0.0.1:{port}"):
        probe(invitation(port=port))


def test_that_silence_is_a_timeout(tmp_path: Path) -> None:
    with answering(tmp_path, mute=True) as port, pytest.raises(trouble.TimedOut, match="firewall"):
        probe(invitation(port=port), timeout=0.5)


def test_that_another_certificate_is_said_and_lasting(tmp_path: Path) -> None:
    with answering(tmp_path, name="127.0.0.1") as port, pytest.raises(trouble.WrongCertificate, match="another certificate") as error:
        probe(invitation(port=port))
    assert error.value.lasting


def test_that_a_port_that_speaks_no_tls_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain:
                plain.recv(4096)
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(trouble.WrongCertificate, match="does not speak TLS"):
            probe(invitation(port=listener.getsockname()[1]))
        thread.join()


@pytest.mark.parametrize(("clock", "side"), [(-60.0, "ahead of"), (3600.0, "behind")])
def test_that_a_clock_that_is_off_is_said_with_its_side(tmp_path: Path, clock: float, side: str) -> None:
    with answering(tmp_path, clock=clock) as port, pytest.raises(trouble.ClockOff, match=side):
        probe(invitation(port=port))


def test_that_versions_that_differ_are_both_named_before_anything_is_sent() -> None:
    with pytest.raises(trouble.VersionMismatch, match=r"Flower 1\.30\.0 runs there, Flower 1\.41"):
        probe(invitation(flwr_version="1.30.0"))
    trouble.check_versions("1.41.9")


def test_that_a_server_in_disorder_is_said(tmp_path: Path) -> None:
    with answering(tmp_path, status="503 Service Unavailable") as port, pytest.raises(trouble.ServerTrouble, match="503"):
        probe(invitation(port=port))


def test_that_every_trouble_has_a_code_of_its_own_and_says_what_to_do() -> None:
    kinds = ConnectionTrouble.__subclasses__()
    assert len({kind.code for kind in kinds}) == len(kinds) == 10
    assert all(
        trouble.trouble(error, invitation()).remedy for error in (OSError("x"), TimeoutError(), ConnectionRefusedError(), socket.gaierror())
    )
