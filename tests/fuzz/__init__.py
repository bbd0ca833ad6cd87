"""Fuzz tests of all parsers of user files: ``python -m tests.fuzz --inputs 500000`` (see CONTRIBUTING.md).

Each module has two functions. ``inputs(rng) -> bytes`` makes one input. ``check(data) -> None`` reads it and raises on
a violation: an exception other than a ``ValueError`` that names the file (and the line), a record that is lost without
a message, or an inconsistent result. ``SHARE`` (default 1.0) is the relative number of inputs; a slow module sets it
lower.
"""
