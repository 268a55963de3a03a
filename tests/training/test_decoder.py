"""Which decoder plays videos: found out by trying, without harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zk0desk.settings import ChosenRecording
from zk0desk.training import decoder
from zk0desk.training.decoder import Decoder, decoder_for, decoder_of
from zk0desk.training.frames import Frames
from zk0desk.training.policy import TrainablePolicy

VIDEO = Path("video.mp4")


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A home of its own, an FFmpeg that is there, and `tried(program)`: what is run in place of trying torchcodec."""

    def trying(program: str) -> Path:
        monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path))
        monkeypatch.setattr(decoder, "_known", {})
        monkeypatch.setattr(decoder, "_ffmpeg", lambda: "57")
        monkeypatch.setattr(decoder, "_TRY", program)
        return tmp_path / "state" / "decoders.json"

    return trying


@pytest.mark.parametrize(
    ("program", "name", "why"),
    [
        ("pass", "torchcodec", "It decodes a frame."),
        ("raise RuntimeError('no libtorchcodec')", "pyav", "torchcodec does not work: RuntimeError: no libtorchcodec"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "pyav", "it was ended by a fault in its own code"),
        ("import sys; sys.exit('its picture is another one')", "pyav", "its picture is another one"),
    ],
    ids=["it works", "it cannot be loaded", "it crashes", "it shows something else"],
)
def test_torchcodec_is_taken_where_it_works_and_harms_nothing_where_not(tried, program: str, name: str, why: str) -> None:
    kept = tried(program)
    found = decoder_for(VIDEO, "av1")
    assert found.name == name and why in found.why
    (key,) = json.loads(kept.read_text())
    assert "FFmpeg 57, av1" in key and "torch 2" in key


def test_it_is_tried_once_for_a_codec_and_again_when_asked_to(tried) -> None:
    tried("raise SystemExit('no')")
    assert decoder_for(VIDEO, "av1").name == "pyav"
    tried("pass")
    assert decoder_for(VIDEO, "av1").name == "pyav"
    assert decoder_for(VIDEO, "h264").name == "torchcodec"
    assert decoder_for(VIDEO, "av1", again=True).name == "torchcodec"
    assert decoder_for(VIDEO, "av1").name == "torchcodec"


def test_where_something_is_missing_nothing_is_tried(tried, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tried("raise SystemExit('it was tried')")
    monkeypatch.setattr(decoder, "_ffmpeg", lambda: "none")
    assert decoder_for(VIDEO, "av1") == Decoder("pyav", "torchcodec needs FFmpeg, which is not installed.")

    def missing(name: str) -> str:
        raise decoder.PackageNotFoundError(name)

    monkeypatch.setattr(decoder, "version", missing)
    assert decoder_for(VIDEO, "av1") == Decoder("pyav", "torchcodec is not installed.")
    assert not kept.exists()


def test_a_damaged_file_of_answers_is_as_none(tried) -> None:
    kept = tried("pass")
    kept.parent.mkdir(parents=True)
    kept.write_text("[")
    assert decoder_for(VIDEO, "av1").name == "torchcodec"


def test_training_goes_on_with_pyav_when_torchcodec_fails_in_the_middle(
    demo_policy: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets import video_utils

    from zk0desk.training import frames as module

    policy, chosen = TrainablePolicy.load(demo_policy), [ChosenRecording(path=recordings / "node0")]
    expected = Frames(policy, chosen).batch([3, 30])
    asked = []

    def fails(*_: object, **__: object) -> torch.Tensor:
        asked.append(1)
        raise RuntimeError("no more frames")

    monkeypatch.setattr(module, "decoder_of", lambda _path: Decoder("torchcodec", ""))
    monkeypatch.setattr(video_utils, "decode_video_frames_torchcodec", fails)
    found = Frames(policy, chosen).batch([3, 30])
    assert asked == [1] and all(torch.equal(found[key], expected[key]) for key in expected)


def test_torchcodec_gives_the_pictures_that_pyav_gives(demo_policy: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import frames as module

    found = decoder_of(recordings / "node0")
    if found.name != "torchcodec":
        pytest.skip(found.why)
    policy, chosen = TrainablePolicy.load(demo_policy), [ChosenRecording(path=recordings / "node0")]
    seen = []
    for name in ("pyav", "torchcodec"):
        monkeypatch.setattr(module, "decoder_of", lambda _path, name=name: Decoder(name, ""))
        frames = Frames(policy, chosen)
        seen.append(frames.batch(range(len(frames))))
        assert frames.tables[0].pictures.decoder == name
    for key, value in seen[0].items():
        assert (value.int() - seen[1][key].int()).abs().max() <= 2


def test_the_environment_may_spare_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0desk.training import decoder

    monkeypatch.setenv(decoder.CHOSEN, "pyav")
    monkeypatch.setattr(decoder, "_try", lambda _: pytest.fail("it was tried"))
    assert decoder.decoder_for(tmp_path / "video.mp4", "h264").name == "pyav"
