"""Servers are verified by what the system trusts."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import socketserver
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.engine.wheel_parts import WheelServer, list_of, write_wheel
from zk0desk.engine import certificates
from zk0desk.engine.errors import EngineRefused, EngineUnreachable


@pytest.fixture
def certificate(tmp_path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def secure(shelf, certificate):
    """The server of wheels, over TLS."""
    one = WheelServer(shelf)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    one._server.socket = context.wrap_socket(one._server.socket, server_side=True)
    yield one, one.url.replace("http://", "https://")
    one.stop()


def test_a_server_that_the_system_does_not_trust_is_refused_and_one_that_it_trusts_is_used(secure, shelf, certificate, get, monkeypatch):
    _, url = secure
    wanted = list_of([write_wheel(shelf, "one", {"one.py": b""})], url)
    with pytest.raises(EngineUnreachable, match="certificate is not trusted") as raised:
        get(wanted)
    assert "SSL_CERT_FILE" in raised.value.remedy
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(wanted).used


class _Tunnel(socketserver.StreamRequestHandler):
    """A proxy that knows CONNECT alone."""

    def handle(self) -> None:
        first = self.rfile.readline().decode()
        headers = {
            line.partition(":")[0].lower(): line.partition(":")[2].strip()
            for line in iter(lambda: self.rfile.readline().decode().strip(), "")
        }
        self.server.seen.append((first.split()[:2], headers.get("proxy-authorization")))  # type: ignore[attr-defined]
        if "proxy-authorization" not in headers:
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        host, port = first.split()[1].rsplit(":", 1)
        with socket.create_connection((host, int(port))) as other:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_pipe, args=(other, self.connection))
            back.start()
            _pipe(self.connection, other)
            back.join()


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy():
    """A proxy on loopback; what it was asked for is in `seen`."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Tunnel)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_tls_goes_through_a_proxy_that_asks_for_a_login(secure, shelf, certificate, proxy, get, monkeypatch):
    _, url = secure
    wanted = list_of([write_wheel(shelf, "one", {"one.py": b""})], url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
    with pytest.raises(EngineRefused, match="The proxy asks for a login"):
        get(wanted)
    monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{proxy.server_address[1]}")
    assert get(wanted).used
    assert proxy.seen[-1] == (["CONNECT", url.removeprefix("https://")], "Basic bWU6c2VjcmV0")


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1080", "http://"])
def test_a_proxy_that_cannot_be_used_is_told(shelf, get, monkeypatch, address):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", address)
    with pytest.raises(EngineUnreachable, match="proxy of this system cannot be used"):
        get(list_of([write_wheel(shelf, "one", {"one.py": b""})], "https://192.0.2.1"))


def test_tls_is_never_left_by_a_redirect(secure, server, shelf, certificate, get, monkeypatch):
    one, url = secure
    wanted = list_of([write_wheel(shelf, "one", {"one.py": b""})], url)

    def elsewhere(handler, name, *_) -> bool:
        handler.send_response(302)
        handler.send_header("Location", f"{server.url}/{name}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    one.bad = [elsewhere]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(EngineRefused, match="sends to an address that is not used"):
        get(wanted)
    assert not server.requests


def test_where_python_finds_no_certificates_those_of_the_system_are_taken(certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(certificates, "BUNDLES", (str(tmp_path / "missing.pem"), str(certificate)))
    assert len(certificates.context().get_ca_certs()) == 1
    monkeypatch.setattr(certificates, "BUNDLES", ())
    assert len(certificates.context().get_ca_certs()) > 50, "certifi's are the last resort"
