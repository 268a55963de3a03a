"""The engine's lists are made of the lock and a package index, and hold nothing that an owner's computer could not install."""

import base64
import hashlib
import http.server
import io
import json
import re
import tarfile
import threading
import zipfile

import pytest
from zk0build import engine_lists, lock, recipe
from zk0build.trouble import BuildError

TARGET = recipe.TARGETS["linux-x86_64"]


def _wheel(name, version, requires=()):
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {
        f"{name}/__init__.py": "",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=") for path, text in files.items()}
    record = f"{name}-{version}.dist-info/RECORD"
    files[record] = "".join(f"{path},sha256={digests[path]},{len(text)}\n" for path, text in files.items()) + f"{record},,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path, text in files.items():
            file.writestr(path, text)
    return buffer.getvalue()


def _source(name, version):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for path, text in {
            "setup.py": f"from setuptools import setup; setup(name='{name}', version='{version}', py_modules=['{name}'])",
            f"{name}.py": "",
            "PKG-INFO": f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n",
        }.items():
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.size = len(text)
            file.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


FILES = {
    "window": {"window-1.0-py3-none-any.whl": _wheel("window", "1.0")},
    "torch": {
        "torch-2.0-cp312-cp312-manylinux_2_28_x86_64.whl": _wheel("torch", "2.0", ["triton==3", "oldie==0.6", "window"]),
        "torch-2.0-cp312-cp312-win_amd64.whl": _wheel("torch", "2.0", ["oldie==0.6"]) + b" ",
    },
    "triton": {"triton-3-py3-none-any.whl": _wheel("triton", "3")},
    "oldie": {"oldie-0.6.tar.gz": _source("oldie", "0.6")},
}


@pytest.fixture(scope="module")
def server():
    """A package index on loopback: four packages, one of which has only its sources."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            parts = self.path.strip("/").split("/")
            if parts[0] == "files":
                data, kind = FILES[parts[1]][parts[2]], "application/octet-stream"
            elif parts[0] == "simple" and len(parts) == 2 and parts[1] in FILES:
                listed = [
                    {
                        "filename": file,
                        "url": f"/files/{parts[1]}/{file}",
                        "size": len(data),
                        "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
                    }
                    for file, data in FILES[parts[1]].items()
                ]
                described = {"meta": {"api-version": "1.1"}, "name": parts[1], "files": listed, "versions": []}
                data, kind = json.dumps(described).encode(), "application/vnd.pypi.simple.v1+json"
            else:
                self.send_error(404)
                return
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if self.server.gives_parts else None
            if part:
                data = data[int(part[1]) : int(part[2]) + 1]
            self.send_response(206 if part else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.gives_parts = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def index(server):
    """The index's address; whole files only, unless a test says otherwise."""
    server.gives_parts = False
    return f"http://127.0.0.1:{server.server_port}/simple"


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'p'\nversion = '1'\nrequires-python = '>=3.12'\ndependencies = ['window']\n"
        "[project.optional-dependencies]\nengine = ['torch']\n"
    )
    pins = {"window": "1.0", "torch": "2.0", "triton": "3", "oldie": "0.6"}
    hashes = {name: [hashlib.sha256(data).hexdigest() for data in files.values()] for name, files in FILES.items()}
    lines = [f"{name}=={version} " + " ".join(f"--hash=sha256:{each}" for each in hashes[name]) for name, version in pins.items()]
    (folder / "requirements.lock").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def make(index, project, tmp_path, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")

    def made(target=TARGET, **changed):
        options = {
            "index": index,
            "torch_indexes": {},
            "work": tmp_path,
            "project": project,
            "locked": project / "requirements.lock",
        } | changed
        return engine_lists.write(tmp_path / "engines", target, recipe.read(), {"window"}, **options)

    return made


def test_a_list_names_the_targets_own_wheels_less_what_is_shipped_and_what_is_never_wanted(make, tmp_path):
    (path,) = make()
    listed = json.loads(path.read_text())
    assert path.name == "linux-x86_64-cu130.json" and (listed["schema"], listed["backend"], listed["python"]) == (1, "cu130", "cp312")
    assert [entry["name"] for entry in listed["wheels"]] == ["oldie", "torch"]
    torch = listed["wheels"][1]
    data = FILES["torch"]["torch-2.0-cp312-cp312-manylinux_2_28_x86_64.whl"]
    assert (torch["size"], torch["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()) and torch["url"].endswith(torch["file"])


def test_what_has_only_sources_is_built_once_and_shipped(make, tmp_path):
    (path,) = make()
    entry = json.loads(path.read_text())["wheels"][0]
    wheel = tmp_path / "engines" / "wheels" / entry["file"]
    assert entry["url"] == "" and entry["file"] == "oldie-0.6-py3-none-any.whl"
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == entry["sha256"]
    before = path.read_bytes()
    make()
    assert path.read_bytes() == before


def test_what_is_in_a_wheel_is_listed_where_the_index_gives_parts_of_a_file(make, server):
    (path,) = make()
    assert "unpacked" not in json.loads(path.read_text())["wheels"][1]
    server.gives_parts = True
    (path,) = make()
    torch = json.loads(path.read_text())["wheels"][1]
    with zipfile.ZipFile(io.BytesIO(FILES["torch"][torch["file"]])) as wheel:
        assert torch["unpacked"] == sum(entry.file_size for entry in wheel.infolist())
        assert torch["record"] == hashlib.sha256(wheel.read("torch-2.0.dist-info/RECORD")).hexdigest()


def test_each_system_gets_its_own_wheels(make):
    (path,) = make(recipe.TARGETS["windows-x86_64"])
    assert path.name == "windows-x86_64-cpu.json" and json.loads(path.read_text())["wheels"][1]["file"].endswith("win_amd64.whl")


def test_a_back_end_that_the_index_lacks_is_made_when_another_index_is_given(make, index):
    assert [path.stem for path in make(torch_indexes={"cpu": index})] == ["linux-x86_64-cu130", "linux-x86_64-cpu"]


def test_a_file_that_the_lock_does_not_vouch_for_stops_the_build(make, project):
    text = (project / "requirements.lock").read_text()
    real = hashlib.sha256(FILES["torch"]["torch-2.0-cp312-cp312-manylinux_2_28_x86_64.whl"]).hexdigest()
    (project / "requirements.lock").write_text(text.replace(real, "0" * 64))
    with pytest.raises(BuildError, match="not a file that requirements.lock vouches for"):
        make()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"file": "torch-2.0.tar.gz"}, "is no wheel"),
        ({"version": "2.1"}, "is not what requirements.lock has"),
        ({"size": 0}, "cannot be fetched"),
        ({"url": "file:///opt/torch.whl"}, "cannot be fetched"),
        ({"url": ""}, "is not shipped"),
        ({"name": "surprise"}, "is not what requirements.lock has"),
    ],
)
def test_a_list_that_an_owner_could_not_use_is_refused(changed, said, tmp_path):
    entry = {
        "name": "torch",
        "version": "2.0",
        "file": "torch-2.0-py3-none-any.whl",
        "size": 1,
        "sha256": "0" * 64,
        "url": "https://example/t.whl",
    }
    locked = {"torch": lock.Locked("2.0", frozenset())}
    engine_lists.check({"wheels": [entry]}, locked, tmp_path)
    with pytest.raises(BuildError, match=said):
        engine_lists.check({"wheels": [entry | changed]}, locked, tmp_path)
