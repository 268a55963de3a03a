"""Quarantine: how a node gets there, and what lifts it."""

import pytest

from zk0desk.federation.node_registry import NodeRegistry, RegistryError
from zk0desk.federation.quarantine import Quarantine

KEY, OTHER = b"one", b"two"


@pytest.fixture
def registry(tmp_path):
    NodeRegistry.make(tmp_path / "nodes.sqlite")
    return tmp_path / "nodes.sqlite"


def test_that_refusals_in_a_row_lead_there_and_an_accepted_reply_between_them_does_not(registry):
    quarantine = Quarantine(registry)
    assert [quarantine.strike(KEY, "why", 3) for _ in range(2)] == [False, False]
    quarantine.clear(KEY)
    assert [quarantine.strike(KEY, f"why {n}", 3) for n in range(3)] == [False, False, True]
    assert not quarantine.strike(OTHER, "why", 3)
    (held,) = quarantine.held().values()
    assert set(quarantine.held()) == {KEY} and held.strikes == 3 and held.why == "why 2"


def test_that_it_survives_the_process_and_is_lifted_by_admitting(registry):
    Quarantine(registry).strike(KEY, "why", 1)
    again = Quarantine(registry)
    assert KEY in again.held()
    again.clear(KEY)
    assert not Quarantine(registry).held()
    assert not again.strike(KEY, "why", 2)


def test_that_nobody_is_quarantined_where_the_coordinator_wants_none(registry):
    quarantine = Quarantine(registry)
    assert not any(quarantine.strike(KEY, "why", 0) for _ in range(9)) and not quarantine.held()


def test_that_a_registry_that_is_missing_lets_nobody_out(registry):
    quarantine = Quarantine(registry)
    quarantine.strike(KEY, "why", 1)
    registry.unlink()
    with pytest.raises(RegistryError):
        quarantine.held()
    assert not registry.exists()
