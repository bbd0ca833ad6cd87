"""Fuzzing of everything that reads a user's file: ``python -m tests.fuzz --inputs 500000`` (see CONTRIBUTING.md).

Each module here has two functions: ``inputs(rng) -> bytes`` makes one input, ``check(data) -> None`` reads it and
raises on a violation: an exception other than a ``ValueError`` that names the file (and the line), a record that is
lost without a word, or a result that is not whole. ``SHARE`` (1.0) makes a slow module get fewer inputs.
"""
