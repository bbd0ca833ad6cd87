"""The wheel: built offline from a copy of the tree, inspected, installed into an empty folder and used from there."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ds4sci.kernels import native
from tests.support.compilers import less_optimizing

ROOT = Path(__file__).resolve().parents[2]
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree plus a native source two folders deep, to check that nested sources are packaged."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    for name in ("ds4sci", "kernels", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=JUNK)
    for suffix in ("cpp", "h", "cu", "cuh"):
        probe = tree / "kernels" / "probe" / "deep" / f"probe.{suffix}"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("// a probe of the packaging test\n", encoding="utf-8")
    return build(tree, tree / "dist")


def build(tree: Path, out: Path, **variables: str) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--wheel-dir", str(out), "."]
    environment = os.environ | variables
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("site"))


def install(wheel: Path, target: Path) -> Path:
    """The folder that ``pip install --target`` made of the wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    done = subprocess.run([*pip, "--target", str(target), str(wheel)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def run(installed: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with the installed copy first on its path, away from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(installed), **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=installed.parent, env=environment, capture_output=True, text=True, timeout=300
    )


def expected() -> set[str]:
    """Names that the wheel must contain."""
    names = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.json", "*.md", "*.yaml")
        for file in (ROOT / "ds4sci").rglob(pattern)
    }
    names |= {f.relative_to(ROOT).as_posix() for f in (ROOT / "ds4sci" / "report" / "assets").rglob("*") if f.is_file()}
    configs = [file for pattern in ("*.toml", "*.json") for file in (ROOT / "configs").rglob(pattern)]
    names |= {"ds4sci/_configs/" + file.relative_to(ROOT / "configs").as_posix() for file in configs}
    natives = [f for pattern in ("*.cpp", "*.h", "*.cu", "*.cuh") for f in (ROOT / "kernels").rglob(pattern)]
    names |= {"ds4sci/_csrc/" + file.relative_to(ROOT / "kernels").as_posix() for file in natives}
    return names | {f"ds4sci/_csrc/probe/deep/probe.{suffix}" for suffix in ("cpp", "h", "cu", "cuh")}


def test_wheel_carries_code_configs_and_native_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert expected() - names == set()
    top = {name.split("/")[0] for name in names}
    assert top == {"ds4sci", next(name for name in top if name.endswith(".dist-info"))}, "tests and runs stay out"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert any(name.endswith("3dmol/3Dmol-min.js") for name in names)
    assert any(name.endswith("licenses/ds4sci/report/assets/3dmol/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0 AND BSD-3-Clause" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_imported_packages_are_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    required = {
        re.match(r"Requires-Dist: ([\w-]+)", line)[1]  # type: ignore[index]
        for line in lines
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    modules = set()
    for file in (ROOT / "ds4sci").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    # triton comes with torch
    extras = {
        "flash_attn", "peft", "pynvml", "mlperf_logging", "colossus", "skimage", "torchao", "bitsandbytes",
        "accelerate",
    }  # fmt: skip
    baselines = {"cuequivariance_torch", "trifast", "pyfaidx", "deepxde", "torchdata"}  # if installed
    optional = {"triton", *extras, *baselines}
    foreign = modules - sys.stdlib_module_names - {"ds4sci"} - optional
    distributions = importlib.metadata.packages_distributions()
    owners = {module: {name.lower() for name in distributions.get(module, [module])} for module in foreign}
    assert {module for module, names in owners.items() if not names & required} == set()


def test_installed_copy_runs_without_the_repository(installed: Path) -> None:
    code = "import ds4sci, pathlib; print(pathlib.Path(ds4sci.__file__).parent)"
    assert Path(run(installed, "-c", code).stdout.strip()).resolve() == (installed / "ds4sci").resolve()
    shown = run(installed, "-m", "ds4sci", "--help")
    assert shown.returncode == 0, shown.stderr
    for command in ("train", "eval", "predict", "data", "report", "bench", "doctor"):
        assert command in shown.stdout
    script = (installed / "bin" / "ds4sci").read_text(encoding="utf-8")
    assert "ds4sci.cli.main" in script, "the console script starts ds4sci.cli.main"


def test_installed_copy_finds_its_configs(installed: Path) -> None:
    code = (
        "from ds4sci.config.run_file import RunConfig\n"
        "config = RunConfig.load('configs/fold/tiny_cpu.toml')\n"
        "print(sorted(config.deepspeed_config()))"
    )
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "train_micro_batch_size_per_gpu" in done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("complete", [False, True])
def test_a_wheel_can_contain_the_native_code(tmp_path: Path, complete: bool) -> None:
    """It contains code for every instruction set of this processor family; the target needs no compiler.

    ``complete`` builds all operations as they are shipped, else two of them with less optimization, in a quarter of the
    time: what is left out is what a compiler may do, not how the wheel is made and found.
    """
    try:
        compiler = native.compiler() if complete else less_optimizing(tmp_path / "compiler")
    except native.BuildError as error:
        pytest.skip(str(error))
    tree = tmp_path / "tree"
    for name in ("ds4sci", "kernels", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=JUNK)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    if not complete:
        for name in ("pointwise", "varlen_attention"):
            shutil.rmtree(tree / "kernels" / name)
    wheel = build(tree, tmp_path / "dist", DS4SCI_PREBUILD="1", CXX=str(compiler))
    with zipfile.ZipFile(wheel) as archive:
        built = [Path(name).name for name in archive.namelist() if Path(name).parent.name == native.BUILT]
    operations = {file.parent.name for file in (tree / "kernels").glob(f"*/{native.ENTRY}")}
    targets = [isa.name for isa in native.ISAS if platform.machine() in ("x86_64", "AMD64") or not isa.needs]
    assert sorted(name.rpartition("-")[0] for name in built) == sorted(f"{x}-{y}" for x in operations for y in targets)
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert "any" not in wheel.name
    code = (
        "import torch; from ds4sci.kernels import evoformer_attention as f; x = torch.ones(1, 1, 2, 1, 8);"
        "print(f(x, x, x, implementation='native').sum().item())"
    )
    bare = {"PATH": str(tmp_path), "CXX": "", "DS4SCI_CACHE": str(tmp_path / "cache")}
    done = run(install(wheel, tmp_path / "site"), "-c", code, **bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["16.0"]
    assert not (tmp_path / "cache").exists(), "the native code was built again"
