"""Builds of the native code: headers, compiler flags, the check of the interface when a library is loaded."""

from __future__ import annotations

import ctypes
import platform
import shlex
import subprocess
from pathlib import Path

import pytest

from ds4sci.kernels import native
from ds4sci.kernels.arrays import Array
from ds4sci.kernels.pointwise.native import Params, Tile

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
HEADERS = sorted(KERNELS.rglob("*.h"))
X86 = platform.machine() in ("x86_64", "AMD64")
TARGETS = [isa for isa in native.ISAS if X86 or not isa.needs]
PORTABLE = native.ISAS[-1]

FAKE = """
struct Field { const char* name; long offset, size; };
static const Field fields[] = {%s {nullptr, 0, 0}};
extern "C" const Field* ds4sci_abi_%s(long* version) { *version = %d; return fields; }
"""


@pytest.fixture
def compiler() -> str:
    try:
        return native.compiler()
    except native.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS4SCI_CACHE", str(tmp_path))
    monkeypatch.delenv("DS4SCI_CXXFLAGS", raising=False)
    return tmp_path


def compile_fake(compiler: str, library: Path, fields: str = "", version: int = native.ABI_VERSION) -> Path:
    """A library with the given description of its structs and nothing else."""
    source = library.with_suffix(".cpp")
    source.write_text(FAKE % (fields, native.isa().name, version))
    library.unlink(missing_ok=True)
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(isa, id=isa.name, marks=[] if isa in (TARGETS[0], PORTABLE) else pytest.mark.nightly)
        for isa in TARGETS
    ],
)
def test_every_header_compiles_without_other_headers(target: native.Isa, compiler: str) -> None:
    flags = [flag for flag in native.flags(target) if flag not in ("-O3", "-shared")]
    command = [compiler, *flags, "-x", "c++", "-w", "-fsyntax-only", *map(str, HEADERS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_headers_have_a_guard_and_the_flags_for_clangd_are_those_of_the_baseline() -> None:
    assert not [header.name for header in HEADERS if "#pragma once" not in header.read_text(encoding="utf-8")]
    flags = (KERNELS / "compile_flags.txt").read_text(encoding="utf-8").split()
    defines = [flag for flag in native.flags(PORTABLE) if flag.startswith(("-D", "-std"))]
    assert flags == ["-xc++", *defines]


def test_the_versions_of_the_interface_are_equal() -> None:
    header = (KERNELS / "simd" / "abi.h").read_text(encoding="utf-8")
    assert f"ABI_VERSION = {native.ABI_VERSION};" in header


def test_all_operations_are_built_at_once(compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "operations", lambda: ["machine", "taylor_series"])
    native.build_all()
    built = {file.name.partition("-")[0] for file in cache.rglob("*.so")}
    assert built == {"machine", "taylor_series"}
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("built twice"))
    native.build_all()


def test_operations_are_the_folders_with_an_entry() -> None:
    assert {"evoformer_attention", "transition", "varlen_attention"} < set(native.operations())
    assert native.SHARED not in native.operations()


def test_a_library_of_an_older_version_is_built_again(
    compiler: str, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = native.build("machine", native.isa())
    library.unlink()
    source = cache / "old.cpp"
    source.write_text('extern "C" int ds4sci_fma() { return 0; }')
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    capfd.readouterr()
    loaded = native.load.__wrapped__("machine")
    assert hasattr(loaded, f"ds4sci_abi_{native.isa().name}")
    shown = capfd.readouterr().err
    assert "does not match this version of ds4sci: it does not describe its structs" in shown
    assert "building machine" in shown


@pytest.mark.parametrize(
    ("fields", "version", "expected"),
    [
        ("", native.ABI_VERSION + 1, f"its interface has version {native.ABI_VERSION + 1}; expected"),
        ("", native.ABI_VERSION, "Tile is missing in the library and 24 bytes at offset 0 in Python"),
        ('{"Tile", 0, 32},', native.ABI_VERSION, "Tile is 32 bytes at offset 0 in the library and 24 bytes"),
        (
            '{"Tile", 0, 24}, {"Tile.data", 16, 8}, {"Tile.stride", 0, 16},',
            native.ABI_VERSION,
            "Tile.data is 8 bytes at offset 16 in the library and 8 bytes at offset 0 in Python",
        ),
        (
            '{"Tile", 0, 24}, {"Tile.data", 0, 8}, {"Tile.stride", 8, 16}, {"Tile.dtype", 8, 8},',
            native.ABI_VERSION,
            "Tile.dtype is 8 bytes at offset 8 in the library and missing in Python",
        ),
    ],
)
def test_the_first_difference_between_structs_is_named(
    fields: str, version: int, expected: str, compiler: str, tmp_path: Path
) -> None:
    library = ctypes.CDLL(str(compile_fake(compiler, tmp_path / "fake.so", fields, version)))
    assert expected in str(native.abi_mismatch(library, native.isa(), (Tile,)))


def test_equal_structs_pass(compiler: str, tmp_path: Path) -> None:
    fields = '{"Tile", 0, 24}, {"Tile.data", 0, 8}, {"Tile.stride", 8, 16}, {"Other", 0, 8},'
    library = ctypes.CDLL(str(compile_fake(compiler, tmp_path / "fake.so", fields)))
    assert native.abi_mismatch(library, native.isa(), (Tile,)) is None


def test_a_mismatch_that_a_build_does_not_remove_is_refused(compiler: str, cache: Path) -> None:
    with pytest.raises(native.BuildError, match=r"machine-.*Array is missing in the library.*reinstall ds4sci"):
        native.load.__wrapped__("machine", Array, Params)
    assert "Array is missing" in str(native.why_not.__wrapped__("machine", Array, Params))


def test_extra_flags_come_last_and_give_a_build_of_their_own(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = native.build("machine", PORTABLE)
    monkeypatch.setenv("DS4SCI_CXXFLAGS", "-g -O1")
    debug = native.build("machine", PORTABLE)
    assert debug != plain
    assert b".debug_info" in debug.read_bytes()
    assert b".debug_info" not in plain.read_bytes()
    monkeypatch.delenv("DS4SCI_CXXFLAGS")
    assert native.build("machine", PORTABLE) == plain


def test_a_failed_build_says_what_failed_and_what_to_do(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4SCI_CXXFLAGS", "-no-such-flag")
    with pytest.raises(native.BuildError) as caught:
        native.build("machine", PORTABLE)
    message = str(caught.value)
    assert "machine: compilation for portable failed with exit code 1" in message
    assert "correct DS4SCI_CXXFLAGS" in message
    assert shlex.quote(str(native.sources("machine") / native.ENTRY)) in message
    assert "no-such-flag" in message


def test_an_address_sanitizer_build_names_what_must_be_preloaded(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4SCI_CXXFLAGS", "-g -O1 -fsanitize=address")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(native.BuildError, match=r"LD_PRELOAD=.*libasan\.so"):
        native.load.__wrapped__("machine")


def test_a_library_that_cannot_be_loaded_is_named(compiler: str, cache: Path) -> None:
    library = native.build("machine", native.isa())
    library.unlink()
    library.write_bytes(b"not a library")
    with pytest.raises(native.BuildError, match=r"cannot be loaded: .*delete the file to build it again"):
        native.load.__wrapped__("machine")


def test_a_folder_that_cannot_be_written_is_named(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DS4SCI_CACHE", str(tmp_path / "file"))
    with pytest.raises(native.BuildError, match=r"machine: the build folder .*DS4SCI_CACHE"):
        native.build("machine", PORTABLE)


def test_an_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS4SCI_ISA", "avx3")
    with pytest.raises(ValueError, match="DS4SCI_ISA=avx3: unknown instruction set; choose one of avx512bf16, "):
        native.isa.__wrapped__()
