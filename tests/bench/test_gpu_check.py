"""GPU check: parts that fail or hang do not stop the others, an interrupted check continues, and the dry run works."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from ds4sci.bench import gpu_check, gpu_page, gpu_tune
from ds4sci.bench.gpu_check import Part, check
from ds4sci.bench.gpu_probe import PROBES
from ds4sci.kernels.evoformer_attention import triton_configs
from ds4sci.kernels.evoformer_attention.triton_configs import Config


def parts(folder: Path) -> list[Part]:
    """A part that passes and counts its calls, one that fails, one that hangs with a child, and one without result."""
    program = folder / "passes.py"
    result = json.dumps({"rows": [["a", 1.5]], "columns": ["x", "y"], "notes": ["n < 3"]})
    program.write_text(
        "import sys, pathlib\n"
        f"calls = pathlib.Path({str(folder / 'calls')!r})\n"
        "calls.write_text(str(int(calls.read_text()) + 1) if calls.exists() else '1')\n"
        f"pathlib.Path(sys.argv[1]).write_text({result!r})\n"
    )
    hangs = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(97)']); "
    return [
        Part("passes", "Passes", (str(program), "{json}"), 60),
        Part("fails", "Fails", ("-c", "print('the reason'); raise SystemExit(3)"), 60),
        Part("hangs", "Hangs", ("-c", hangs + "time.sleep(98)"), 2),
        Part("silent", "Silent", ("-c", ""), 60),
    ]


def test_parts_are_independent_and_a_check_continues(tmp_path: Path) -> None:
    lines: list[str] = []
    for _ in range(2):
        found = check(parts(tmp_path), tmp_path / "out", 5, lines.append, dry_run=True)
    assert (tmp_path / "calls").read_text() == "1", "a part that passed is not repeated"
    statuses = {name: one["status"] for name, one in found["parts"].items()}
    assert statuses == {
        "passes": "passed", "fails": "exit code 3", "hangs": "stopped after 2 s",
        "silent": "nothing was measured or tested",
    }  # fmt: skip
    assert found["parts"]["fails"]["log"] == ["the reason"]
    assert "Passes: passed before" in lines
    assert json.loads((tmp_path / "out/summary.json").read_text()) == found
    page = (tmp_path / "out/index.html").read_text()
    for text in ("the reason", "n &lt; 3", "stopped after 2 s", "1 of 4", "not a measurement"):
        assert text in page
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "time.sleep(97)" not in processes, "the child of a part that was stopped is stopped too"


def test_parts_without_time_are_not_run(tmp_path: Path) -> None:
    began = time.monotonic()
    found = check(parts(tmp_path), tmp_path / "out", 0.01, lambda text: None, dry_run=True)
    assert time.monotonic() - began < 5
    assert {one["status"] for one in found["parts"].values()} == {"not run: no time was left"}


def test_results_of_another_commit_are_not_reused(tmp_path: Path) -> None:
    chosen = parts(tmp_path)[:1]
    check(chosen, tmp_path / "out", 5, lambda text: None, dry_run=True)
    file = tmp_path / "out/summary.json"
    file.write_text(file.read_text().replace('"commit": "', '"commit": "other '))
    check(chosen, tmp_path / "out", 5, lambda text: None, dry_run=True)
    assert (tmp_path / "calls").read_text() == "2"


def test_counts_of_a_pytest_report(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 1 == 2, 'one is not two'\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
    )
    report = tmp_path / "report.xml"
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(tmp_path)], cwd=tmp_path)
    found = gpu_page.read_tests(report)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    ((name, message),) = found["failures"]
    assert name.endswith("::test_b")
    assert "one is not two" in message
    assert gpu_page.read_tests(tmp_path / "absent.xml")["passed"] == 0


def test_floor_by_hand() -> None:
    limits = {"flops": {"bfloat16": 100.0, "float32": None}, "bytes_per_second": 10.0}
    row = {
        "dtype": "bfloat16",
        "flops": 500,
        "bytes": 20,
        "backward": True,
        "seconds": 10.0,
        "case": "c",
        "method": "m",
    }
    assert gpu_page.floor(row, limits) == (5.0, "products")
    assert gpu_page.floor(row | {"bytes": 80}, limits) == (8.0, "memory")
    assert gpu_page.floor(row | {"dtype": "float32"}, limits) is None
    assert gpu_page.floor({"dtype": "bfloat16"}, limits) is None
    assert gpu_page.floor_rows([row], limits) == [
        ["c", "bfloat16", "forward + backward", "m", "1e+04", "5e+03", "50%", "products"]
    ]


def test_every_probe_is_a_part() -> None:
    for dry_run in (False, True):
        named = [one.arguments[2] for one in gpu_check.parts(dry_run) if "ds4sci.bench.gpu_probe" in one.arguments]
        assert sorted(named) == sorted(PROBES)


def test_dry_run(tmp_path: Path) -> None:
    gpu_check.command(tmp_path, part=["limits", "language_model", "packed_attention"], dry_run=True)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert [one["status"] for one in found["parts"].values()] == ["passed"] * 3
    assert found["parts"]["limits"]["measurement"]["limits"]["all_reduce"] is True
    assert [row[0] for row in found["parts"]["language_model"]["measurement"]["rows"]] == [256, 512]
    assert "share of the floor" in (tmp_path / "index.html").read_text()
    with pytest.raises(ValueError, match="--part tensor_cores: unknown part; expected one of: limits, tests"):
        gpu_check.command(tmp_path, part=["tensor_cores"])


def test_without_a_gpu_every_part_says_so(tmp_path: Path) -> None:
    with pytest.raises(typer.Exit):
        gpu_check.command(tmp_path, part=["limits"])
    found = json.loads((tmp_path / "summary.json").read_text())["parts"]["limits"]
    assert found["status"] == "exit code 1"
    assert "torch sees no GPU" in "\n".join(found["log"])


def test_tuning_walks_to_the_fastest_config_that_may_be_shipped() -> None:
    fastest, refused = Config(2, 128, 64, 8, 3), Config(2, 128, 128, 8, 3)

    def time_of(config: Config) -> float:
        if config == refused:
            return 0.5
        values = zip(vars(config).values(), vars(fastest).values(), strict=True)
        return 1.0 + sum(abs(a - b) / (a + b) for a, b in values)

    start = Config(1, 32, 32, 4, 1)
    best, times = gpu_tune.tune("attend", start, time_of, lambda config: config == refused)
    assert best == fastest
    assert refused in times
    assert all(
        gpu_tune.LIMITS[name][0] <= value <= gpu_tune.LIMITS[name][1] for c in times for name, value in vars(c).items()
    )
    assert gpu_tune.tune("attend", start, lambda config: 1.0, lambda config: False)[0] == start


def test_the_tuned_table_has_the_layout_of_the_shipped_one() -> None:
    table = json.loads(triton_configs.FILE.read_text())["configs"]
    assert gpu_tune.text_of(table) == triton_configs.FILE.read_text()
    gpu_tune.updated(table, "sm_120", 16, 32, "attend", 0, Config(1, 2, 3, 4, 5))
    assert table["sm_120"]["16"]["32"]["attend"][0][1:] == [1, 2, 3, 4, 5]
    assert table["sm_80"] == json.loads(triton_configs.FILE.read_text())["configs"]["sm_80"]
    assert json.loads(gpu_tune.text_of(table))["configs"] == table


@pytest.mark.nightly
def test_dry_run_of_all_parts(tmp_path: Path) -> None:
    gpu_check.command(tmp_path, tune=True, dry_run=True)
    tuned = json.loads((tmp_path / "tune/summary.json").read_text())["parts"]["tune"]
    assert tuned["status"] == "passed"
    assert len(tuned["measurement"]["rows"]) >= 8
    found = json.loads((tmp_path / "summary.json").read_text())
    assert {one["status"] for one in found["parts"].values()} == {"passed"}
    assert found["parts"]["tests"]["tests"]["passed"] > 0
