"""What the Hub's stand-in does with uploads, as the Hub answers huggingface_hub: create, preupload, LFS batch, parts, verify, commit."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.federation.hub_stand_in import Answer

JSON = {"Content-Type": "application/json"}
PART = 150_000
"""Larger files go up in parts of so many bytes."""


def take(answer: Answer, path: str, query: dict[str, list[str]], token: str) -> None:
    """Answer a POST or PUT. Nothing is taken without a token that may write."""
    body = _body(answer)
    if answer.hub.interfere(answer):
        return
    if answer.is_store:
        _stored(answer, path.rpartition("/")[2], query, body)
        return
    if path == "/api/validate-yaml":
        _say(answer, {"errors": [], "warnings": []})
    elif token not in answer.hub.writers:
        answer.send(403 if token in answer.hub.tokens else 401, b'{"error":"no"}', {})
    elif path == "/api/repos/create":
        _create(answer, json.loads(body), token)
    elif path.endswith(".git/info/lfs/objects/batch"):
        _batch(answer, path.removesuffix("/batch"), json.loads(body))
    elif path.endswith(".git/info/lfs/objects/verify"):
        asked = json.loads(body)
        _say(answer, {}, 200 if len(answer.hub.blobs.get(asked["oid"], b"")) == asked["size"] else 404)
    else:
        _, _, _, user, name, verb, _ = path.split("/")
        if (repository := answer.hub.repositories.get(f"{user}/{name}")) is None:
            answer.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif verb == "preupload":
            _say(answer, {"files": [_mode(each) for each in json.loads(body)["files"]]})
        else:
            _commit(answer, f"{user}/{name}", repository, [json.loads(line) for line in body.splitlines()])


def _body(answer: Answer) -> bytes:
    if answer.headers.get("Transfer-Encoding", "") != "chunked":
        return answer.rfile.read(int(answer.headers.get("Content-Length", 0)))
    body = b""
    while size := int(answer.rfile.readline(), 16):
        body += answer.rfile.read(size)
        answer.rfile.readline()
    answer.rfile.readline()
    return body


def _say(answer: Answer, data: Any, status: int = 200) -> None:
    answer.send(status, json.dumps(data).encode(), JSON)


def _create(answer: Answer, asked: dict[str, Any], token: str) -> None:
    from tests.federation.hub_stand_in import Repository

    name = f"{asked['organization']}/{asked['name']}"
    if name in answer.hub.repositories:
        _say(answer, {"error": "You already created this model repo", "url": f"{answer.hub.endpoint}/{name}"}, 409)
        return
    answer.hub.repositories[name] = Repository({}, private=asked.get("visibility") == "private", members=(token,))
    _say(answer, {"url": f"{answer.hub.endpoint}/{name}", "name": name})


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["size"] >= 10 * 2**20 or file["path"].endswith((".safetensors", ".png"))
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}


def _batch(answer: Answer, prefix: str, asked: dict[str, Any]) -> None:
    store, objects = answer.hub.store, []
    for each in asked["objects"]:
        oid, size = each["oid"], each["size"]
        upload: dict[str, Any] = {"href": f"{store}/{oid}"}
        if size > PART:
            parts = range(1, -(-size // PART) + 1)
            upload = {"href": f"{store}/{oid}?complete=1", "header": {str(n): f"{store}/{oid}?part={n}" for n in parts}}
            upload["header"]["chunk_size"] = str(PART)
        verify = {"href": f"{answer.hub.endpoint}{prefix}/verify"}
        known = oid in answer.hub.blobs
        objects.append({"oid": oid, "size": size, **({} if known else {"actions": {"upload": upload, "verify": verify}})})
    _say(answer, {"transfer": "multipart", "objects": objects})


def _stored(answer: Answer, oid: str, query: dict[str, list[str]], body: bytes) -> None:
    if "part" in query:
        answer.hub.parts.setdefault(oid, {})[int(query["part"][0])] = body
    else:
        if "complete" in query:
            asked, parts = json.loads(body), answer.hub.parts.pop(oid)
            assert [part["partNumber"] for part in asked["parts"]] == sorted(parts)
            body = b"".join(parts[number] for number in sorted(parts))
        if hashlib.sha256(body).hexdigest() != oid:
            answer.send(400, b"BadDigest", {})
            return
        answer.hub.blobs[oid] = body
    answer.send(200, b"{}", {"ETag": f'"{hashlib.md5(body).hexdigest()}"', **JSON})


def _commit(answer: Answer, name: str, repository: Any, lines: list[dict[str, Any]]) -> None:
    files = dict(repository.files)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in answer.hub.blobs:
                _say(answer, {"error": "Your push was rejected because an LFS pointer pointed to a file that does not exist"}, 400)
                return
            files[value["path"]] = answer.hub.blobs[value["oid"]]
    repository.files = files
    repository.commit = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
    _say(answer, {"success": True, "commitOid": repository.commit, "commitUrl": f"{answer.hub.endpoint}/{name}/commit/{repository.commit}"})
