"""Native CPU code: found beside the package, built once for this machine's instruction set, loaded with ctypes.

Needs a C++17 compiler and nothing of torch's headers. A build goes to the cache folder under a name that holds the
sources' and the command's hash, is made under a lock that dies with its holder, and appears whole or not at all.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ds4sci.files import locks
from ds4sci.files.cache import cache_root

PACKAGE = Path(__file__).resolve().parents[1]
BUILT = "_built"
"""Folder of the package where a wheel carries builds: ``DS4SCI_PREBUILD=1 pip wheel .``"""
SHARED = "simd"
"""Folder of the headers that several operations include."""
COMMON = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")


@dataclass(frozen=True)
class Isa:
    """An instruction set: ``lanes`` fp32 in a vector, ``rows`` of the micro-kernel, what the processor must have."""

    name: str
    lanes: int
    rows: int
    flags: tuple[str, ...]
    needs: frozenset[str]


_AVX512 = ("avx512f", "avx512vl", "avx512dq", "avx512bw", "fma")

ISAS = (
    Isa("avx512bf16", 16, 12, tuple(f"-m{x}" for x in (*_AVX512, "avx512bf16")), frozenset({*_AVX512, "avx512_bf16"})),
    Isa("avx512", 16, 12, tuple(f"-m{x}" for x in _AVX512), frozenset(_AVX512)),
    Isa("avx2", 8, 6, ("-mavx2", "-mfma"), frozenset({"avx2", "fma"})),
    Isa("portable", 4, 6, (), frozenset()),
)
"""Best first. ``portable`` is SSE2 on x86-64 and NEON on Arm, whatever the compiler takes as its baseline."""


class BuildError(RuntimeError):
    """There is no compiler, or it refused the sources; the message says which and shows its words."""


def sources(name: str) -> Path:
    """Folder of an operation's sources: in the wheel, else in the repository."""
    for root in (PACKAGE / "_csrc", PACKAGE.parent / "kernels"):
        if (root / name).is_dir():
            return root / name
    raise BuildError(f"the sources of {name!r} lie neither in {PACKAGE / '_csrc'} nor in {PACKAGE.parent / 'kernels'}")


@functools.cache
def isa() -> Isa:
    """The best instruction set of this processor, or the one that DS4SCI_ISA names; ValueError for an unknown name."""
    wanted = os.environ.get("DS4SCI_ISA")
    if wanted:
        for one in ISAS:
            if one.name == wanted:
                return one
        raise ValueError(f"DS4SCI_ISA={wanted}: there are {', '.join(i.name for i in ISAS)}")
    has = _processor_flags()
    return next(one for one in ISAS if one.needs <= has)


def _processor_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if platform.machine() in ("x86_64", "AMD64") and info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def compiler() -> str:
    """Path of $CXX, g++, c++ or clang++. Raises BuildError naming the package that brings one."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        found = shutil.which(name)
        if found:
            return found
    raise BuildError("there is no C++ compiler; `apt-get install g++` brings one")


def flags(target: Isa) -> list[str]:
    return [
        *COMMON, *target.flags, f"-DDS4SCI_ISA={target.name}", f"-DDS4SCI_LANES={target.lanes}",
        f"-DDS4SCI_MR={target.rows}",
    ]  # fmt: skip


def _library(name: str, target: Isa, compiled_by: str = "") -> str:
    """File name of a build: a change of sources, flags or compiler gives another."""
    digest = hashlib.sha256("\0".join([*flags(target), compiled_by, platform.machine()]).encode())
    for file in (*sorted(sources(name).iterdir()), *sorted(sources(SHARED).iterdir())):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"{name}-{target.name}-{digest.hexdigest()[:16]}.so"


def build(name: str, target: Isa) -> Path:
    """The shared library of ``name`` for ``target``: the wheel's, else built unless it is there. Raises BuildError."""
    carried = PACKAGE / BUILT / _library(name, target)
    if carried.exists():
        return carried
    cxx = compiler()
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout
    library = cache_root() / _library(name, target, version)
    if library.exists():
        return library
    try:
        with locks.exclusive(library.parent / f"{name}.lock"):
            if not library.exists():
                _compile(name, target, cxx, library)
    except OSError as error:
        raise BuildError(
            f"{library.parent} cannot be written ({error}); set DS4SCI_CACHE to a folder that can"
        ) from error
    return library


def prebuild(into: Path) -> list[Path]:
    """Every operation for every instruction set of this kind of processor, for a wheel to carry. Raises BuildError."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    into.mkdir(parents=True, exist_ok=True)
    made = []
    for folder in sorted(sources("machine").parent.iterdir()):
        if (folder / "width.cpp").is_file():
            for target in ISAS:
                if x86 or not target.needs:
                    made.append(into / _library(folder.name, target))
                    _compile(folder.name, target, compiler(), made[-1])
    return made


def _compile(name: str, target: Isa, cxx: str, library: Path) -> None:
    command = [cxx, *flags(target), str(sources(name) / "width.cpp")]
    print(f"ds4sci: building {name} for {target.name}, once …", end="", file=sys.stderr, flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=library.parent) as aside:
        made = Path(aside) / library.name
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(" failed", file=sys.stderr)
            raise BuildError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        made.replace(library)
    print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """The library of ``name`` for this machine. Raises BuildError."""
    library = build(name, isa())
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{library} cannot be loaded: {error}") from error


@functools.cache
def why_not(name: str) -> str | None:
    """Why ``name`` cannot be had here, or None; builds it."""
    try:
        load(name)
    except (BuildError, ValueError) as error:
        return str(error)
    return None


@functools.cache
def team() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP that torch has loaded: our work runs on torch's own threads."""
    maps = Path("/proc/self/maps")
    if maps.is_file():
        for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
            path = line.split(maxsplit=5)[-1]
            if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
                function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
                if function is not None:
                    return ctypes.cast(function, ctypes.c_void_p).value
    return None
