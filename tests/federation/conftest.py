"""Fixtures of the federation's tests."""

from __future__ import annotations

from tests.federation.hub_parts import memory_keyring, nothing_chosen, the_hub

__all__ = ["memory_keyring", "nothing_chosen", "the_hub"]
