"""C++ compilers for tests of how code is built rather than of the code: with less optimization, with other sources."""

from __future__ import annotations

import shlex
from pathlib import Path

from ds4sci.kernels import native


def less_optimizing(file: Path) -> Path:
    """Write a compiler to ``file``: the usual one with ``-O1`` after all other flags.

    Not ``-O0``, with which GCC 12 fails on vectors for AVX-512 ("unrecognizable insn").
    """
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(native.compiler())} "$@" -O1\n', encoding="utf-8")
    file.chmod(0o755)
    return file


def substituting(file: Path, name: str, source: str) -> Path:
    """Write a compiler to ``file``: it compiles ``source`` instead of a file called ``name``, and an empty file instead
    of every other one."""
    own, nothing = file.with_name(f"{file.name}-{name}"), file.with_name(f"{file.name}-nothing.cpp")
    own.write_text(source, encoding="utf-8")
    nothing.touch()
    file.write_text(
        f"""#!/bin/sh
for argument; do
    shift
    case $argument in
        */{name}) argument={shlex.quote(str(own))} ;;
        *.cpp) argument={shlex.quote(str(nothing))} ;;
    esac
    set -- "$@" "$argument"
done
exec {shlex.quote(native.compiler())} "$@" -O0
""",
        encoding="utf-8",
    )
    file.chmod(0o755)
    return file
