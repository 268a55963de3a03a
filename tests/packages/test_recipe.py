"""The recipe is one that can be built from, and says so when it is not."""

import subprocess
import sys

import pytest
from zk0build import lock, recipe, system_libraries
from zk0build.trouble import BuildError

from zk0desk.resources import resource


def test_what_the_recipe_calls_the_application_is_what_the_desktop_files_say(checkout):
    identity = recipe.read().identity
    entry = resource(f"{identity.id}.desktop").read_text()
    assert f"MimeType=x-scheme-handler/{identity.scheme};{identity.mime};" in entry and "Exec=zk0desk-window %u" in entry
    mime = resource(f"{identity.id}.mime.xml").read_text()
    assert f'type="{identity.mime}"' in mime and f'pattern="*.{identity.extension}"' in mime
    assert f"<id>{identity.id}</id>" in resource(f"{identity.id}.metainfo.xml").read_text()
    assert identity.opt in (checkout / "packaging" / "linux" / "copyright").read_text()


def test_every_system_has_a_list_of_engines_that_needs_no_index_but_the_usual_one():
    lists = recipe.read().engine_lists
    assert len({each.name for each in lists}) == len(lists)
    for target in recipe.TARGETS.values():
        assert any((each.system, each.arch, each.torch_index) == (target.system, target.arch, False) for each in lists), target.name


def test_a_recipe_without_a_key_says_which(tmp_path, checkout):
    broken = tmp_path / "recipe.toml"
    broken.write_text((checkout / "packaging" / "recipe.toml").read_text().replace("plugins = [", "plugin = ["))
    with pytest.raises(BuildError, match="KeyError: 'plugins'"):
        recipe.read(broken)


def test_setting_up_a_checkout_and_the_package_know_the_same_libraries(checkout):
    table = system_libraries.table()
    assert len(table) > 30 and "system-libraries.txt" in (checkout / "packaging" / "bootstrap.sh").read_text()
    assert table["libxcb-cursor.so.0"].carried and not table["libEGL.so.1"].carried


def test_wheels_are_ranked_as_the_target_would_choose_them():
    linux = lock.tags(recipe.TARGETS["linux-x86_64"])
    by_name = {str(tag): rank for tag, rank in linux.items()}
    assert by_name["cp312-cp312-manylinux_2_28_x86_64"] < by_name["cp311-abi3-manylinux_2_28_x86_64"] < by_name["py3-none-any"]
    assert by_name["cp312-cp312-manylinux_2_28_x86_64"] < by_name["cp312-cp312-manylinux2014_x86_64"]
    assert "cp312-cp312-manylinux_2_39_x86_64" not in by_name and "cp312-cp312-musllinux_1_2_x86_64" not in by_name
    assert "cp312-cp312-win_amd64" in {str(tag) for tag in lock.tags(recipe.TARGETS["windows-x86_64"])}
    assert "cp312-cp312-macosx_11_0_arm64" in {str(tag) for tag in lock.tags(recipe.TARGETS["macos-arm64"])}


def test_the_command_refuses_what_it_cannot_build_in_words(checkout, tmp_path):
    build = [sys.executable, checkout / "packaging" / "build.py", "--out", tmp_path]
    told = subprocess.run([*build, "--system", "linux", "--format", "deb"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 1 and "No Python was given" in told.stderr and "--python running" in told.stderr
    told = subprocess.run([*build, "--system", "windows", "--format", "deb"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 2 and "windows has no format deb" in told.stderr
