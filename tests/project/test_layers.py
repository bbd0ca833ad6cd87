"""Import rules: layers and circles, read from the syntax tree; side effects of imports, observed in a fresh process."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ds4sci"

FOUNDATION = {"types", "chemistry", "files", "machine"}
NN = FOUNDATION | {"geometry", "kernels", "parallel"}
TASKS = NN | {"nn", "models", "losses", "data", "metrics", "config", "physics", "baselines", "datasets"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "types": set(),
    "files": set(),
    "machine": set(),
    "chemistry": {"types"},
    "monitor": FOUNDATION,
    "config": {"types", "files", "machine"},
    "geometry": FOUNDATION,
    "kernels": {"types", "files"},
    "metrics": FOUNDATION,
    "data": FOUNDATION,
    "datasets": FOUNDATION | {"data", "physics"},
    "losses": FOUNDATION | {"geometry", "parallel"},
    "parallel": {"types"},
    "nn": NN,
    "models": NN | {"nn"},
    "integrations": NN | {"nn"},
    "physics": NN | {"nn"},
    "baselines": FOUNDATION | {"data", "metrics"},
    "tasks": TASKS,
    "mlperf": FOUNDATION | {"config", "data", "datasets"},
    "train": TASKS | {"tasks", "mlperf", "monitor"},
    "planner": TASKS | {"tasks"},
    "inference": TASKS | {"tasks", "train"},
    "report": TASKS | {"tasks", "train", "inference", "monitor"},
    "select": TASKS | {"tasks", "train", "inference", "report"},
    "workloads": TASKS | {"tasks", "train", "inference", "report"},
    "scaling": TASKS | {"tasks", "train", "report", "workloads", "planner"},
    "bench": TASKS
    | {"tasks", "train", "inference", "report", "integrations", "monitor", "workloads", "select", "planner", "scaling"},
    "doctor": TASKS | {"tasks", "train"},
    "selftest": TASKS | {"tasks", "train"},
}
"""The packages, lowest first, and the other packages that each may import."""

TOP = {"__main__", "cli"}
"""The command line: may import everything; nothing may import it."""

NO_TORCH = (
    "chemistry/",
    "config/",
    "files/",
    "types.py",
    "data/alignments/",
    "data/structures/parsers/",
    "data/structures/features",
    "data/sequences/",
    "data/array_shards",
    "data/delivery_ledger",
    "data/loader",
    "data/ready_loader",
    "data/sample_",
    "datasets/",
    "monitor/",
    "data/tokenizers/",
    "data/language/sequence_transform",
    "data/language/packing",
    "metrics/",
)
KERNEL_REQUIREMENTS = {"torch", "triton", "flash_attn"}  # the last two inside functions, where they are installed


@dataclass(frozen=True)
class Import:
    """One imported module: where, what, and whether it runs when the importing module is imported."""

    file: Path
    line: int
    module: str
    at_import: bool
    for_typing: bool
    targets: tuple[str, ...] = ()
    """The modules that the statement imports: ``a.b.c`` for ``from a.b import c`` where c is a module, else ``a.b``."""

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _walk(
    node: ast.AST, *, in_function: bool = False, for_typing: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    yield node, in_function, for_typing
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, in_function=inside, for_typing=for_typing or _is_type_checking(node))


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> list[Import]:
    """Every import statement of a module of the package, functions' own ones and those for typing included."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    found: list[Import] = []
    for node, in_function, for_typing in _walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        targets: tuple[str, ...] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            targets = tuple(names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from ds4sci import kernels` names a module in its last part; `from ds4sci.types import Batch` does not.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ds4sci" else [module]
            inner = [f"{module}.{alias.name}" for alias in node.names]
            targets = tuple(name if _is_module(name) else module for name in inner)
        found += [Import(file, node.lineno, name, not in_function, for_typing, targets) for name in names]
    return found


def part(file: Path) -> str:
    """``ds4sci/data/structures/parsers/pdb.py`` belongs to ``data``, ``ds4sci/config/run_file.py`` to ``config``."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(file for file in PACKAGE.rglob("*.py") if "__pycache__" not in file.parts)
ALL = [entry for file in MODULES for entry in imports(file)]


def test_every_package_has_a_layer() -> None:
    missing = {part(file) for file in MODULES} - set(MAY_IMPORT) - TOP
    assert not missing, f"add these packages to MAY_IMPORT: {sorted(missing)}"


def test_imports_go_down_the_layers() -> None:
    wrong = []
    for entry in ALL:
        source, target = part(entry.file), entry.module.split(".")[1:2]
        if source in TOP or not entry.module.startswith("ds4sci.") or target == ["__version__"]:
            continue
        if not set(target) <= MAY_IMPORT[source] | {source}:
            wrong.append(f"{entry}: {source} may use {sorted(MAY_IMPORT[source])}")
    assert not wrong, "\n".join(wrong)


def test_no_import_circles() -> None:
    """No module needs itself through others; imports inside functions count, imports for type checkers do not."""
    needs: dict[str, set[str]] = {_dotted(file): set() for file in MODULES}
    for entry in ALL:
        if not entry.for_typing:
            needs[_dotted(entry.file)] |= set(entry.targets) & set(needs)
    circles = []
    for start in needs:
        seen: set[str] = set()
        waiting = list(needs[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += needs[module]
        if start in seen:
            circles.append(start)
    assert not circles, f"these modules import themselves through others: {circles}"


def test_deepspeed_is_imported_in_train_and_parallel_only() -> None:
    allowed = ("train", "parallel", "bench")  # bench measures DeepSpeed's own attention as a baseline
    wrong = [str(e) for e in ALL if e.module.split(".")[0] == "deepspeed" and part(e.file) not in allowed]
    assert not wrong, "\n".join(wrong)


def test_numpy_modules_do_not_import_torch() -> None:
    wrong = [
        str(e)
        for e in ALL
        if e.module.split(".")[0] == "torch"
        and str(e.file.relative_to(PACKAGE)).startswith(NO_TORCH)
        and not e.for_typing
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_need_only_torch() -> None:
    known = sys.stdlib_module_names | KERNEL_REQUIREMENTS | {"ds4sci"}
    wrong = [str(e) for e in ALL if part(e.file) == "kernels" and e.module.split(".")[0] not in known]
    assert not wrong, "\n".join(wrong)


def test_no_environment_variable_is_read_at_import() -> None:
    wrong = []
    for file in MODULES:
        for node, in_function, _ in _walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not in_function and isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def sources() -> list[Path]:
    """Every Python file of the project."""
    folders = [ROOT / name for name in ("ds4sci", "launch", "tests", "examples")]
    nested = [file for folder in folders for file in folder.rglob("*.py") if "__pycache__" not in file.parts]
    return sorted([ROOT / "setup.py", *nested])


def test_modules_are_short() -> None:
    sizes = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
    long = [f"{file.relative_to(ROOT)}: {lines} lines" for file, lines in sizes.items() if lines > 500]
    assert not long, "500 lines is the limit (aim under 300): " + ", ".join(long)


def test_modules_are_concepts() -> None:
    """Half of the package's modules have at most 120 lines, and at most 8 are shorter than 30."""
    sizes = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in MODULES}
    assert statistics.median(sizes.values()) <= 120
    short = [file for file in MODULES if sizes[file] < 30 and file.stem not in ("__init__", "__main__", "reference")]
    assert len(short) <= 8, f"merge these modules into the concepts they belong to: {[str(file) for file in short]}"


def test_modules_are_named_after_concepts() -> None:
    bins = {"utils", "util", "common", "misc", "helpers", "helper"}
    names = [file for file in sources() if {*file.relative_to(ROOT).with_suffix("").parts} & bins]
    twins = [
        file for file in sources() if file.stem.rstrip("0123456789").endswith(("_v", "v")) and file.stem[-1:].isdigit()
    ]
    assert not names + twins, f"a reader guesses the file from the concept: {names + twins}"


def test_native_sources_are_not_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's `kernels` package"


PROBE = """
import importlib, json, os, sys
before = dict(os.environ)
for name in sys.argv[1].split(","):
    importlib.import_module(name)
heavy = sorted({m.split(".")[0] for m in sys.modules} & {"deepspeed", "transformers", "matplotlib", "wandb", "triton"})
print(json.dumps({"heavy": heavy, "environment": dict(os.environ) == before, "torch": "torch" in sys.modules}))
"""


def probe(names: list[str], home: Path) -> dict[str, object]:
    """Import ``names`` in a fresh process whose home, caches and working folder are the empty ``home``."""
    quiet = {"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home / "cache", "TORCH_EXTENSIONS_DIR": home / "ext"}
    # matplotlib, imported by the report's figures, writes a font list at its first import: elsewhere.
    quiet["MPLCONFIGDIR"] = home.with_name(f"{home.name}-matplotlib")
    environment = {**os.environ, **{key: str(value) for key, value in quiet.items()}, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROBE, ",".join(names), "--an-unknown-argument"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("names", [["ds4sci"], ["ds4sci", "ds4sci.kernels"]], ids="+".join)
def test_import_is_light(names: list[str], tmp_path: Path) -> None:
    seen = probe(names, tmp_path)
    assert seen["heavy"] == []
    assert seen["environment"] is True, "importing changed an environment variable"
    assert seen["torch"] is (len(names) > 1), "`import ds4sci` must not import torch"
    assert list(tmp_path.rglob("*")) == [], "importing wrote files"


def test_importing_every_module_writes_and_compiles_nothing(tmp_path: Path) -> None:
    uses_deepspeed = {e.file for e in ALL if e.module.split(".")[0] == "deepspeed" and e.at_import and not e.for_typing}
    names = []
    for file in MODULES:
        if file not in uses_deepspeed and file.name != "__main__.py" and "triton" not in file.stem:
            dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            names.append(dotted.removesuffix(".__init__"))
    seen = probe(names, tmp_path)
    assert "deepspeed" not in seen["heavy"]
    assert seen["environment"] is True, "importing changed an environment variable"
    assert list(tmp_path.rglob("*")) == [], "importing wrote files"


def test_config_and_numpy_modules_run_without_torch(tmp_path: Path) -> None:
    names = ["ds4sci.types", "ds4sci.config.run_file", "ds4sci.data.structures.features", "ds4sci.cli.main"]
    assert probe(names, tmp_path)["torch"] is False
