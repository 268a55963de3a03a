"""The system's certificates, for fetching. Python that moved, as in a package, does not always find them."""

from __future__ import annotations

import os
import ssl
import sys

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",  # Alpine, macOS
)
"""Where systems keep the certificates that they trust, in one file."""


def context() -> ssl.SSLContext:
    """A context that verifies servers by what this system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` are obeyed."""
    if sys.platform in ("win32", "darwin"):
        try:
            import truststore
        except ImportError:
            pass
        else:
            return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made = ssl.create_default_context()
    if not made.get_ca_certs() and not _folder_of_certificates() and (bundle := _bundle()):
        made.load_verify_locations(bundle)
    return made


def _folder_of_certificates() -> bool:
    """Whether OpenSSL has a folder of certificates, which it reads one by one when they are needed."""
    folder = os.environ.get("SSL_CERT_DIR") or ssl.get_default_verify_paths().capath
    try:
        return bool(folder and os.listdir(folder))
    except OSError:
        return False


def _bundle() -> str | None:
    found = next((path for path in BUNDLES if os.path.isfile(path)), None)
    if found is None:
        try:
            import certifi
        except ImportError:
            return None
        found = certifi.where()
    return found
