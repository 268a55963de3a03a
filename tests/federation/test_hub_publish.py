"""A round's policy on the Hub: what goes out, to whom, with which card, and what is said when it does not."""

import hashlib
import io
import json

import pytest
from PIL import Image

from tests.federation.coordinator_parts import make_server
from tests.federation.hub_parts import TOKEN
from tests.federation.hub_stand_in import Repository
from zk0desk.cli import main
from zk0desk.events import Evaluated, PrivacySpent, RoundAggregated, RoundOpened
from zk0desk.federation import chain, hub_publish
from zk0desk.federation.chain import ChainedJournal
from zk0desk.federation.hub_places import ORIGIN_FILE
from zk0desk.federation.hub_token import keep_token
from zk0desk.federation.run_record import RunRecord
from zk0desk.settings import save
from zk0desk.training import policy_files

RUN, REPO = "0a1b2c3d4e5f6071", "my-lab/arms"


@pytest.fixture
def served(tmp_path, the_hub, memory_keyring, monkeypatch):
    """A server with a run of two rounds, of which the first is the best; its policy names its backbone by a folder of this computer."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server = make_server(tmp_path)
    base = server.policy(server.settings())
    (base / "vlm").mkdir()
    (base / "vlm" / "tokenizer.json").write_text("{}")
    (base / "config.json").write_text(json.dumps({"type": "smolvla", "vlm_model_name": "x"}))
    pipeline = {"steps": [{"registry_name": "tokenizer_processor", "config": {"tokenizer_name": "x"}}]}
    (base / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    record = RunRecord(RUN, 30, "p", 5, done=2, best=1, nodes=3, eval_losses={"0": 2.5, "1": 2.0, "2": 2.1})
    record.save(server)
    journal, weights = ChainedJournal(server.runs / RUN / chain.NAME), policy_files.trainable_weights(base)
    for number in (1, 2):
        folder = policy_files.write_policy(record.checkpoint(server, number), base, weights + number)
        (folder / "optimizer.pt").write_bytes(b"not for others")
        (folder / "state.json").write_text('{"nodes": ["secret"]}')
        opened = RoundOpened(run=RUN, round=number, nodes=["7c1e 09af"], lr=1e-4, mu=0.01, weights_sha256="0")
        done = RoundAggregated(run=RUN, round=number, shares={}, missing=[], train_loss=1.0, update_norm=1.0, weights_sha256="0")
        evaluated = Evaluated(run=RUN, round=number, loss=2.0, frames=9, recordings={"anns-kitchen": 2.0}, standard_error=0.125)
        for event in (opened, done, evaluated):
            journal.append(event.to_json())
    journal.close()
    keep_token(TOKEN)
    the_hub.writers = {TOKEN}
    return server


def publish(server, *options):
    return main(["server", "publish", str(server.path), "--repo", REPO, "--license", "apache-2.0", *options])


def test_the_best_round_goes_out_privately_with_its_card_and_curves_and_nothing_else(served, the_hub, capsys):
    assert publish(served, "--yes") == 0
    out = capsys.readouterr().out
    there = the_hub.repositories[REPO]
    assert there.private and there.commit[:12] in out and "only you can read" in out
    assert set(there.files) == {
        "README.md", "config.json", "curves.png", "model.safetensors", "policy_preprocessor.json", "vlm/tokenizer.json"
    }  # fmt: skip
    assert there.files["model.safetensors"] == (served.runs / RUN / "round-0001" / "model.safetensors").read_bytes()
    assert all(name in out for name in there.files)
    card = there.files["README.md"].decode()
    assert (
        "license: apache-2.0" in card and "| base policy | 2.5000 |" in card and "2.0000 ± 0.1250" in card and "3 nodes took part" in card
    )
    base = policy_files.read_policy(served.policy(served.settings()))
    weights = hashlib.sha256(policy_files.trainable_weights(served.runs / RUN / "round-0001").tobytes()).hexdigest()
    assert base.backbone_sha256 in card and base.layout.sha256 in card and weights in card
    everything = b"".join(there.files.values())
    for secret in (str(served.path), str(served.path.parent), TOKEN, "anns-kitchen", "7c1e"):
        assert secret.encode() not in everything
    assert json.loads(there.files["config.json"])["vlm_model_name"] == "vlm"


def test_what_is_published_can_be_fetched_as_a_policy_and_names_its_base_on_the_hub(served, the_hub):
    from tests.federation.hub_parts import get

    base = served.policy(served.settings())
    known = {"kind": "policy", "repo-id": "lab/base", "revision": "main", "commit": "a" * 40, "sizes": {}}
    (base / ORIGIN_FILE).write_text(json.dumps({**known, "backbone": "lab/backbone@" + "b" * 40}))
    assert publish(served, "--yes", "--round", "2", "--json") == 0
    there = the_hub.repositories[REPO].files
    assert "base_model: lab/base" in there["README.md"].decode()
    assert json.loads(there["config.json"])["vlm_model_name"] == "lab/backbone"
    assert json.loads(there["policy_preprocessor.json"])["steps"][0]["config"]["tokenizer_name"] == "lab/backbone"
    folder = get("policy", REPO)
    assert policy_files.read_policy(folder).policy_id == policy_files.read_policy(base).policy_id


def test_under_differential_privacy_the_card_tells_what_is_spent_and_not_how_many_took_part(served, the_hub):
    settings = served.settings()
    privacy = settings.privacy.model_copy(update={"mechanism": "central", "expected_nodes": 40})
    save(settings.model_copy(update={"privacy": privacy}), served.settings_path)
    journal = ChainedJournal(served.runs / RUN / chain.NAME)
    journal.append(PrivacySpent(run=RUN, round=1, of="federation", epsilon=1.5, delta=1e-5, budget=8.0).to_json())
    journal.close()
    assert publish(served, "--yes") == 0
    card = the_hub.repositories[REPO].files["README.md"].decode()
    assert "40 nodes were expected in each" in card and "epsilon 1.5 at delta 1e-05" in card and "3 nodes" not in card


def test_large_files_go_up_in_parts_and_a_store_that_stumbles_is_asked_again(tmp_path, served, the_hub, monkeypatch):
    monkeypatch.setattr("tests.federation.hub_uploads.PART", 20_000)
    counted = the_hub.fail("?part=2", 1, 500)
    assert publish(served, "--yes") == 0
    assert counted["failed"] == 1 and len(the_hub.asked_for("?part=")) > 2
    with Image.open(io.BytesIO(the_hub.repositories[REPO].files["curves.png"])) as picture:
        assert picture.size[0] == 960


def test_where_nobody_can_be_asked_nothing_goes_out_without_yes(served, the_hub, capsys):
    assert publish(served) == 2
    out, err = capsys.readouterr()
    assert "model.safetensors" in out and "--yes" in err and not the_hub.requests


def test_a_public_repository_of_that_name_is_not_written_to_unless_that_is_meant(served, the_hub, capsys):
    the_hub.repositories[REPO] = Repository({}, members=(TOKEN,))
    assert publish(served, "--yes") == 4
    assert "everybody can read it" in capsys.readouterr().err and not the_hub.repositories[REPO].files
    assert publish(served, "--yes", "--public") == 0
    assert the_hub.repositories[REPO].files


@pytest.mark.parametrize(
    ("writers", "kept", "status", "words"), [(set(), True, 5, "does not let you write"), ({TOKEN}, False, 5, "needs a token")]
)
def test_a_token_that_may_not_write_or_is_missing_is_told_and_never_quoted(
    served, the_hub, memory_keyring, capsys, writers, kept, status, words
):
    the_hub.writers, the_hub.tokens = writers, {TOKEN}
    if not kept:
        memory_keyring.kept.clear()
    assert publish(served, "--yes") == status
    err = capsys.readouterr().err
    assert words in err and TOKEN not in err and "Traceback" not in err


def test_the_environments_token_is_used_before_the_keyrings(served, the_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_fromTheEnvironment")
    the_hub.writers = {"hf_fromTheEnvironment"}
    assert publish(served, "--yes") == 0
    assert {request.token for request in the_hub.requests if request.host == "hub"} == {"hf_fromTheEnvironment"}
    assert all(not request.token for request in the_hub.requests if request.host == "store"), "the store is another host"


def test_a_policy_that_names_a_folder_of_this_computer_is_not_published(served, the_hub, capsys):
    config = served.runs / RUN / "round-0001" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pretrained_path": "/home/ann/arms"}))
    assert publish(served, "--yes") == 4
    assert "names a folder of this computer" in capsys.readouterr().err and not the_hub.requests


@pytest.mark.parametrize("which", ["0", "3", "first", "-1"])
def test_a_round_that_is_not_there_is_told(served, the_hub, capsys, which):
    assert publish(served, "--yes", f"--round={which}") == 4
    assert "There is no round" in capsys.readouterr().err and not the_hub.requests


def test_a_hub_that_is_away_is_told_with_what_to_do(served, the_hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert publish(served, "--yes") == 6
    assert "refuses the connection" in capsys.readouterr().err


def test_a_person_who_is_offline_by_choice_publishes_nothing(served, the_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ZK0DESK_QUIET", "")
    assert publish(served, "--yes") == 2 and not the_hub.requests


def test_nothing_is_sent_with_a_token_over_a_line_that_others_may_read(served, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    with pytest.raises(hub_publish.PublishTokenMissing, match="not https") as refused:
        hub_publish.token_for(hub_publish.hub.checked("policy", REPO))
    assert TOKEN not in str(refused.value)
