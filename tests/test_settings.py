import os
import stat
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from zk0desk import settings as module
from zk0desk.errors import SettingsError
from zk0desk.settings import ChosenRecording, ServerPolicy, ServerSettings, Settings, load, parse, save

MODELS = [Settings, ServerSettings]
WORDS = [
    "recordings", "chosen", "training", "device", "federation", "invitation", "rounds", "lr", "batch-size", "network", "port", "path",
    "=", "[", "]", "[[", "]]", ".", ",", "{", "}", "\n", '"', "'", "#", "-1", "1e999", "nan", "true", '"cuda"', "0x7f", "1979-05-27",
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@given(text=st.text(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_any_text_is_settings_or_an_error_in_words(model, text):
    try:
        assert isinstance(parse(model, text), model)
    except SettingsError as error:
        assert error.what and error.why and error.remedy


_toml = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS[:12]), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
def test_any_value_under_a_known_key_is_settings_or_an_error_that_names_the_key(model, data):
    section = data.draw(st.sampled_from(sorted(f.alias or n for n, f in model.model_fields.items())))
    value = data.draw(_toml)
    try:
        parse(model, tomlkit.dumps({section: value}))
    except SettingsError as error:
        assert section in error.why


settings = st.builds(
    Settings,
    recordings=st.builds(
        module.Recordings,
        chosen=st.lists(
            st.builds(
                ChosenRecording,
                path=st.sampled_from(["/data/cubes", "relative/cups", "/mit Leerzeichen/äöü"]),
                cameras=st.dictionaries(
                    st.sampled_from(["camera1", "camera2"]), st.sampled_from(["observation.images.top", "a.b"]), max_size=2
                ),
                leave_out=st.lists(st.integers(0, 99), max_size=3),
            ),
            max_size=3,
        ),
    ),
    training=st.builds(
        module.Training, device=st.sampled_from(["auto", "cpu"]), micro_batch=st.integers(0, 4096), threads=st.integers(0, 8)
    ),
    federation=st.builds(module.Federation, consent=st.text(alphabet="0123456789abcdef", max_size=64), allow_evaluation=st.booleans()),
)


@given(settings)
def test_settings_that_were_saved_are_loaded_again(tmp_path, given_settings):
    path = tmp_path / "settings.toml"
    path.unlink(missing_ok=True)
    save(given_settings, path)
    assert load(path) == given_settings


@given(settings, settings)
def test_saving_over_older_settings_gives_the_newer_ones(tmp_path, first, second):
    path = tmp_path / "settings.toml"
    save(first, path)
    save(second, path)
    assert load(path) == second


def test_a_missing_file_gives_the_defaults(tmp_path):
    assert load(tmp_path / "none.toml") == Settings()


def test_a_new_file_explains_each_key(tmp_path):
    path = tmp_path / "server.toml"
    save(ServerSettings(), path)
    text = path.read_text()
    assert "# FedProx's mu." in text
    assert "proximal-mu = 0.01" in text


def test_comments_and_order_of_the_person_are_kept(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('# my notes\n[training]\nthreads = 2 # one for me\ndevice = "cpu"\n')
    save(load(path).model_copy(update={"training": module.Training(device="cuda", threads=2)}), path)
    lines = path.read_text().splitlines()
    assert lines[:4] == ["# my notes", "[training]", "threads = 2 # one for me", 'device = "cuda"']


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[training]\ndevice = "tpu"\n', "training.device"),
        ("[training]\nmicro-batch = -1\n", "training.micro-batch"),
        ("[training]\nturbo = true\n", "training.turbo"),
        ("[recordings]\nchosen = [{ cameras = {} }]\n", "recordings.chosen.0.path"),
    ],
)
def test_a_wrong_key_is_named(text, says):
    with pytest.raises(SettingsError) as caught:
        parse(Settings, text, "settings.toml")
    assert f"`{says}`" in caught.value.why


def test_broken_toml_is_told_with_its_line():
    with pytest.raises(SettingsError, match="not valid TOML") as caught:
        parse(Settings, "[training\n")
    assert "line 1" in caught.value.why


def test_a_federation_name_of_two_lines_is_refused():
    with pytest.raises(SettingsError, match="one line"):
        parse(ServerSettings, 'federation = "a\\nb"\n')


def test_a_file_that_is_not_utf_8_is_told(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(path)


def test_a_saved_file_is_its_owners_alone_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "settings.toml"
    save(Settings(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["settings.toml"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "settings.toml"
    save(Settings(), path)
    before = path.read_text()

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(Settings(training=module.Training(threads=3)), path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["settings.toml"]


def test_every_setting_of_a_coordinator_has_its_comment_right_before_it(tmp_path):
    held_out = (ChosenRecording(path=Path("/a")), ChosenRecording(path=Path("/b")))
    save(ServerSettings(policy=ServerPolicy(held_out=held_out)), tmp_path / "server.toml")
    lines = [line for line in (tmp_path / "server.toml").read_text().splitlines() if line]
    for section in (ServerSettings, *(info.annotation for info in ServerSettings.model_fields.values())):
        for name, info in getattr(section, "model_fields", {}).items():
            if info.description:
                key = info.alias or name
                places = [n for n, line in enumerate(lines) if line == f"# {info.description}"]
                assert len(places) == 1, key
                assert lines[places[0] + 1].startswith((f"{key} = ", f"[[policy.{key}]]")), key
    assert load(tmp_path / "server.toml", ServerSettings).policy.held_out == held_out
