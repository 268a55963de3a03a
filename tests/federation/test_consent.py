"""What an operator agrees to."""

from __future__ import annotations

import pytest

from tests.federation.node_parts import invitation
from zk0desk.federation.consent import ConsentMissing, consent_digest, consent_text, leaves, never_leaves, remains, require_consent
from zk0desk.federation.messages import TRAIN_METRICS


def test_that_every_metric_that_is_sent_is_named() -> None:
    text = " ".join(leaves(invitation()))
    assert all(name in text for name in TRAIN_METRICS)


def test_that_the_text_says_where_to_what_never_and_what_remains() -> None:
    text = consent_text(invitation(host="arms.example.org", port=8000))
    assert "arms.example.org:8000" in text
    assert "Images, videos" in " ".join(never_leaves()) and "The cache of prepared frames" in " ".join(never_leaves())
    assert "inferred from updates" in remains() and remains() in text


def test_that_consent_to_one_invitation_is_none_to_another() -> None:
    first, second = invitation(), invitation(federation="Others")
    require_consent(first, consent_digest(first))
    with pytest.raises(ConsentMissing, match="changed"):
        require_consent(second, consent_digest(first))
    with pytest.raises(ConsentMissing):
        require_consent(first, "")


def test_that_a_changed_encoding_or_code_asks_again() -> None:
    assert consent_digest(invitation()) != consent_digest(invitation(encoding="fp32"))
    assert consent_digest(invitation()) == consent_digest(invitation())
