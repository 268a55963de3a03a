"""Builds the packages that a robot owner downloads; `packaging/build.py` is its command."""
