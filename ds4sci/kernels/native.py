"""Native CPU code: finds the C++ sources, builds them once for this machine's instruction set, loads them with ctypes.

Requires a C++17 compiler; no headers of torch. A build goes to the cache folder (``ds4sci.files.cache``) under a name
that contains a hash of the sources, the flags and the compiler's version. It is made under a file lock, which a killed
process releases, and renamed when complete. A library describes its structs; ``load`` compares them with the ctypes
structs of the caller.

Environment variables: ``CXX`` (compiler), ``DS4SCI_CXXFLAGS`` (extra flags, part of the hash), ``DS4SCI_ISA`` (name of
an instruction set instead of the best), ``DS4SCI_CACHE`` (cache folder). See docs/debugging_kernels.md.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ds4sci.files import locks
from ds4sci.files.cache import cache_root

PACKAGE = Path(__file__).resolve().parents[1]
BUILT = "_built"
"""Folder of the package in which a wheel carries builds: ``DS4SCI_PREBUILD=1 pip wheel .``"""
SHARED = "simd"
"""Folder of the headers that several operations include."""
ENTRY = "isa_entry.cpp"
"""The source file that is compiled, in the folder of each operation."""
ABI_VERSION = 1
"""``ds4sci::ABI_VERSION`` of ``kernels/simd/abi.h``."""
COMMON = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")


@dataclass(frozen=True)
class Isa:
    """An instruction set: fp32 ``lanes`` per vector, ``rows`` of the micro-kernel, compiler flags, needed CPU flags"""

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
"""Best first. ``portable`` is the compiler's baseline: SSE2 on x86-64, NEON on Arm."""


class BuildError(RuntimeError):
    """A library cannot be built or loaded. The message says what failed, where, and how to fix it."""


class _AbiField(ctypes.Structure):
    """``ds4sci::AbiField`` of ``kernels/simd/abi.h``."""

    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_int64), ("size", ctypes.c_int64)]


def sources(name: str) -> Path:
    """Folder of an operation's sources: in the installed package, else in the repository."""
    for root in (PACKAGE / "_csrc", PACKAGE.parent / "kernels"):
        if (root / name).is_dir():
            return root / name
    raise BuildError(
        f"no C++ sources of {name!r}: neither {PACKAGE / '_csrc' / name} nor {PACKAGE.parent / 'kernels' / name} "
        "exists; reinstall ds4sci"
    )


@functools.cache
def isa() -> Isa:
    """The best instruction set of this processor, or the one that DS4SCI_ISA names. ValueError for an unknown name."""
    chosen = os.environ.get("DS4SCI_ISA")
    if chosen:
        for one in ISAS:
            if one.name == chosen:
                return one
        raise ValueError(
            f"DS4SCI_ISA={chosen}: unknown instruction set; choose one of {', '.join(i.name for i in ISAS)}"
        )
    available = _processor_flags()
    return next(one for one in ISAS if one.needs <= available)


def own_products() -> bool:
    """Whether matrix products of ``kernels/simd/blocks.h`` are faster than the BLAS with the instruction set in use.

    Two Zen 4 cores, transition of 65,536 rows of 128 channels, fp32: 205 GFLOP/s with AVX-512 or AVX2 where MKL's
    products reach 195 and the whole operation on tiles 150; 70 with SSE2, the ``portable`` build of x86-64.
    """
    return isa().lanes >= 8


def _processor_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if platform.machine() in ("x86_64", "AMD64") and info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def compiler() -> str:
    """Path of the first that exists of $CXX, g++, c++ and clang++. Raises BuildError."""
    names = list(filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")))
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(
        f"no C++ compiler found on PATH (tried {', '.join(names)}); install one, for example `apt-get install g++`, "
        "or set CXX to its path"
    )


def flags(target: Isa) -> list[str]:
    """Compiler flags of an instruction set, without DS4SCI_CXXFLAGS."""
    return [
        *COMMON, *target.flags, f"-DDS4SCI_ISA={target.name}", f"-DDS4SCI_LANES={target.lanes}",
        f"-DDS4SCI_MR={target.rows}",
    ]  # fmt: skip


def extra_flags() -> list[str]:
    """The flags in DS4SCI_CXXFLAGS. They come last, so that ``-O1`` there overrides ``-O3``."""
    return shlex.split(os.environ.get("DS4SCI_CXXFLAGS", ""))


def _library(name: str, target: Isa, command: Sequence[str] = ()) -> str:
    """File name of a build: it changes with the sources, the flags, and what ``command`` holds besides."""
    digest = hashlib.sha256("\0".join([*flags(target), *command, platform.machine()]).encode())
    for file in (*sorted(sources(name).iterdir()), *sorted(sources(SHARED).iterdir())):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return f"{name}-{target.name}-{digest.hexdigest()[:16]}.so"


def build(name: str, target: Isa, *, rebuild: bool = False) -> Path:
    """The shared library of ``name`` for ``target``: the wheel's, else the cached one, else a new build.

    ``rebuild`` compiles even if there is one. Raises BuildError.
    """
    extra = extra_flags()
    carried = PACKAGE / BUILT / _library(name, target)
    if not extra and not rebuild and carried.exists():
        return carried
    cxx = compiler()
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout
    library = cache_root() / _library(name, target, [*extra, version])
    if library.exists() and not rebuild:
        return library
    try:
        with locks.exclusive(library.parent / f"{name}.lock"):
            if rebuild or not library.exists():
                _compile(name, target, cxx, extra, library)
    except OSError as error:
        raise BuildError(
            f"{name}: the build folder {library.parent} cannot be written ({error}); set DS4SCI_CACHE to a folder "
            "that can be written"
        ) from error
    return library


def operations() -> list[str]:
    """Operations with C++ code."""
    folders = sources(SHARED).parent.iterdir()
    return sorted(folder.name for folder in folders if (folder / ENTRY).is_file())


def build_all() -> None:
    """Build every operation for this machine, as many at a time as there are cores. Raises BuildError.

    Otherwise the first step of a training builds one operation after the other.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(lambda name: build(name, isa()), operations()):
            pass


def prebuild(into: Path) -> list[Path]:
    """Build every operation for every instruction set of this processor family, for a wheel. Raises BuildError."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    into.mkdir(parents=True, exist_ok=True)
    libraries = []
    for name in operations():
        for target in ISAS:
            if x86 or not target.needs:
                libraries.append(into / _library(name, target))
                _compile(name, target, compiler(), [], libraries[-1])
    return libraries


def _compile(name: str, target: Isa, cxx: str, extra: list[str], library: Path) -> None:
    command = [cxx, *flags(target), *extra, str(sources(name) / ENTRY)]
    print(f"ds4sci: building {name} for {target.name}, once …", file=sys.stderr, flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        partial = Path(scratch) / library.name
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(
                f"{name}: compilation for {target.name} failed with exit code {done.returncode}; set CXX to another "
                f"compiler{', correct DS4SCI_CXXFLAGS' if extra else ''} or set DS4SCI_ISA=portable.\n"
                f"{shlex.join(command)}\n{done.stderr[-2000:]}"
            )
        partial.replace(library)
    print(f"ds4sci: built {name} in {time.monotonic() - began:.0f} s", file=sys.stderr)


@functools.cache
def load(name: str, *structs: type[ctypes.Structure]) -> ctypes.CDLL:
    """The library of ``name`` for this machine, after a check that its structs have the layout of ``structs``.

    A library that fails the check is built again, once. Raises BuildError.
    """
    target = isa()
    library = build(name, target)
    loaded = _open(library)
    problem = abi_mismatch(loaded, target, structs)
    if problem is not None:
        print(f"ds4sci: {library} does not match this version of ds4sci: {problem}", file=sys.stderr)
        _ctypes.dlclose(loaded._handle)  # dlopen would return the old library for the same path
        library = build(name, target, rebuild=True)
        loaded = _open(library)
        problem = abi_mismatch(loaded, target, structs)
    if problem is not None:
        raise BuildError(
            f"{library} does not match this version of ds4sci, though it was built from {sources(name)}: {problem}; "
            "reinstall ds4sci"
        )
    return loaded


def _open(library: Path) -> ctypes.CDLL:
    if "-fsanitize=address" in extra_flags() and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise BuildError(
            f"{library} is built with AddressSanitizer, whose runtime must be loaded before Python: set "
            'LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"'
        )
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{library} cannot be loaded: {error}; delete the file to build it again") from error


def abi_mismatch(library: ctypes.CDLL, target: Isa, structs: Sequence[type[ctypes.Structure]]) -> str | None:
    """The first difference between the structs of ``library`` and ``structs``, or None."""
    function = getattr(library, f"ds4sci_abi_{target.name}", None)
    if function is None:
        return "it does not describe its structs, so an older version built it"
    function.restype = ctypes.POINTER(_AbiField)
    version = ctypes.c_int64()
    fields = function(ctypes.byref(version))
    if version.value != ABI_VERSION:
        return f"its interface has version {version.value}; expected {ABI_VERSION}"
    theirs: dict[str, tuple[int, int]] = {}
    while (name := fields[len(theirs)].name) is not None:
        field = fields[len(theirs)]
        theirs[name.decode()] = (field.offset, field.size)
    for struct in structs:
        ours = {struct.__name__: (0, ctypes.sizeof(struct))}
        for entry in struct._fields_:
            descriptor = getattr(struct, entry[0])
            ours[f"{struct.__name__}.{entry[0]}"] = (descriptor.offset, descriptor.size)
        names = [*ours, *(name for name in theirs if name.partition(".")[0] == struct.__name__)]
        for name in names:
            if ours.get(name) != theirs.get(name):
                return f"{name} is {_layout(theirs.get(name))} in the library and {_layout(ours.get(name))} in Python"
    return None


def _layout(place: tuple[int, int] | None) -> str:
    return "missing" if place is None else f"{place[1]} bytes at offset {place[0]}"


@functools.cache
def why_not(name: str, *structs: type[ctypes.Structure]) -> str | None:
    """Why ``name`` cannot be used here, or None. Builds it if necessary."""
    try:
        load(name, *structs)
    except (BuildError, ValueError) as error:
        return str(error)
    return None


@functools.cache
def gomp_parallel() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch has loaded: kernels then run on torch's threads."""
    maps = Path("/proc/self/maps")
    if maps.is_file():
        for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
            path = line.split(maxsplit=5)[-1]
            if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
                function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
                if function is not None:
                    return ctypes.cast(function, ctypes.c_void_p).value
    return None
