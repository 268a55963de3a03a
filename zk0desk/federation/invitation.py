"""What a coordinator hands to an operator: one line of text, or a file that holds that line.

It says where the federation is, with which certificate it answers, which policy is trained and how nodes are
admitted. It holds no secret but the admission code, which lets a node ask to be admitted. Nothing is sent while it is read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import ssl
import stat
import zlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zk0desk.errors import ExitStatus, OperatorError

PREFIX = "zk0desk:join?"
"""How an invitation's line begins."""
SUFFIX = ".zk0invite"
"""Ending of an invitation's file."""
LINE_LIMIT = 16_384
"""Longest line that is read, in characters."""
JSON_LIMIT = 65_536
"""Largest JSON that is unpacked from a line, in bytes."""

FILE_LIMIT = 4 * LINE_LIMIT
"""Largest file that is read, in bytes."""

_LINE = re.compile(re.escape(PREFIX) + r"([A-Za-z0-9_\-=]+)")
_HOST = re.compile(r"^(?:[A-Za-z0-9](?:[A-Za-z0-9\-.]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]{2,45}\]?)$")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(max_length=128)]


class InvitationError(OperatorError):
    """The text is not an invitation, is cut off, or holds something that is not allowed."""

    code = "invitation-invalid"
    exit_status = ExitStatus.USAGE


def certificate_sha256(pem: str) -> str:
    """Hex SHA-256 of the first certificate of `pem`, over its DER bytes; ValueError when there is none."""
    start, end = pem.find("-----BEGIN CERTIFICATE-----"), pem.find("-----END CERTIFICATE-----")
    if start < 0 or end < start:
        raise ValueError("it holds no certificate")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[start : end + len("-----END CERTIFICATE-----")])
    except (ValueError, binascii.Error) as error:
        raise ValueError("its certificate is not valid PEM") from error
    return hashlib.sha256(der).hexdigest()


class Invitation(BaseModel):
    """Everything an operator's computer has to know before it calls a federation."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=lambda n: n.replace("_", "-"))

    federation: str = Field(min_length=1, max_length=128, description="Name of the federation.")
    contact: Annotated[str, Field(max_length=256)] = Field("", description="How to reach the coordinator.")
    host: str = Field(description="Name or address of the federation's computer.")
    port: int = Field(ge=1, le=65535)
    certificate: str = Field(max_length=8192, description="The certificate (PEM) that the federation answers with.")
    certificate_sha256: Sha256
    policy_id: str = Field(pattern=r"^[A-Za-z0-9._\-]{1,128}$")
    policy_name: Name = ""
    backbone_sha256: Sha256 = Field(description="Of the frozen tensors.")
    layout_sha256: Sha256 = Field(description="Of names, shapes and order of the trainable parameters.")
    parameters: int = Field(ge=1, le=10**12)
    trainable_parameters: int = Field(ge=1, le=10**12)
    admission: Literal["approved", "open"] = "approved"
    code: str = Field("", pattern=r"^[A-Za-z0-9_\-]{0,128}$", description="Admission code that a node shows.")
    valid_until: float = Field(0.0, ge=0, le=1e11, description="Until when a new node may use it, in Unix seconds; 0: without an end.")
    rounds: int = Field(ge=1, le=100_000)
    local_epochs: float = Field(gt=0, le=10_000)
    local_steps: int = Field(0, ge=0, le=1_000_000)
    batch_size: int = Field(ge=1, le=4096)
    deadline_s: float = Field(gt=0, le=39_600)
    encoding: Literal["fp32", "fp16", "int8"] = "fp16"
    flwr_version: str = Field("", pattern=r"^[0-9A-Za-z.+\-]{0,32}$")
    zk0desk_version: str = Field("", pattern=r"^[0-9A-Za-z.+\-]{0,32}$")

    @field_validator("federation", "contact", "policy_name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must be one line of printable characters")
        return value

    @field_validator("host")
    @classmethod
    def _is_host(cls, value: str) -> str:
        if not _HOST.match(value):
            raise ValueError("is not a host name or address")
        return value.strip("[]")

    @field_validator("local_epochs", "deadline_s", "valid_until")
    @classmethod
    def _as_float(cls, value: float) -> float:
        return float(value)

    @model_validator(mode="after")
    def _certificate_agrees(self) -> Invitation:
        if certificate_sha256(self.certificate) != self.certificate_sha256:
            raise ValueError("the certificate is not the one that its fingerprint names")
        return self

    @property
    def address(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def to_line(self) -> str:
        """The line that an operator pastes."""
        packed = zlib.compress(self.model_dump_json(by_alias=True).encode(), 9)
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def write(self, path: Path) -> None:
        """Write the invitation's file: a sentence for a person, and the line."""
        until = f", valid until {datetime.fromtimestamp(self.valid_until):%Y-%m-%d %H:%M}" if self.valid_until else ""
        text = f"Invitation to {self.federation} ({self.address}){until}. Open it with zk0desk.\n{self.to_line()}\n"
        path.write_text(text, encoding="utf-8")

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """The invitation in `text` (a line, a file's text, or a line broken by a mail program).

        Raises `InvitationError` with what is wrong with it.
        """
        start = text.find(PREFIX)
        if start < 0:
            raise InvitationError(
                "This is not an invitation.", f"It holds no line that begins with {PREFIX}", "Paste the whole line, or open the file."
            )
        # Mail programs wrap long lines; what follows the prefix up to the first other character belongs to the line.
        found = _LINE.match("".join(text[start : start + 2 * LINE_LIMIT].split()))
        remedy = "Copy it again as a whole, or ask the coordinator for the file."
        if not found:
            raise InvitationError("This invitation is empty.", f"Nothing follows {PREFIX}", remedy)
        if len(found[0]) > LINE_LIMIT:
            raise InvitationError("This invitation is too long.", f"It has more than {LINE_LIMIT} characters.", remedy)
        try:
            body = found[1].rstrip("=")
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True), JSON_LIMIT)
            whole = unpacker.eof
        except (ValueError, zlib.error) as error:
            raise InvitationError("This invitation is damaged.", "A part of it is missing or was changed on the way.", remedy) from error
        if not whole:
            raise InvitationError("This invitation is damaged.", "It ends too early, or is larger than an invitation can be.", remedy)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "invitation"
            raise InvitationError(
                "This invitation cannot be used.", f"`{where}`: {first['msg']}.", "Ask the coordinator for a new one."
            ) from error

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """The invitation in a file; `InvitationError` when it cannot be read or is none."""
        remedy = "Open the file that the coordinator sent; its name ends in .zk0invite."
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for without an end
                raise InvitationError(f"{path} is not an invitation.", "It is a folder or a device, and no file.", remedy)
            if about.st_size > FILE_LIMIT:
                why = f"It has {about.st_size / 1e6:,.1f} MB; an invitation has a few KB."
                raise InvitationError(f"{path} is not an invitation.", why, remedy)
            with path.open(encoding="utf-8", errors="replace") as file:
                return cls.parse(file.read(FILE_LIMIT))
        except OSError as error:
            raise InvitationError(
                f"{path} cannot be read.", f"{error.strerror}.", "Check that the file is there and may be read."
            ) from error
