"""Submission folder of MLPerf HPC, and the findings of upstream's checkers on it.

::

    results/SYSTEM/strong/BENCHMARK/result_0.txt …    runs for the time to quality
    results/SYSTEM/weak/BENCHMARK/result_0.txt …      instances for the throughput; those that do not count are in
                                                      pruned_results/
    systems/SYSTEM.json                               description of the system
    benchmarks/BENCHMARK/implementations/ds4sci/      run file, DeepSpeed JSON and commit of a run, and how to repeat it

Logs are copied byte for byte.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds4sci.mlperf import OFFICIAL, RULES_VERSION, require
from ds4sci.mlperf.log_file import LogFile
from ds4sci.mlperf.score import Throughput, TimeToQuality
from ds4sci.mlperf.system import UNKNOWN, describe, is_this_host

REASONS = (
    (
        r"Skipping benchmark",
        f"upstream checks the names {', '.join(OFFICIAL)} only; the rules of this benchmark are those of "
        "`ds4sci bench check`",
    ),
    (
        r"Incorrect number of files|Expected at least",
        "the rules require this number of runs; train more runs with other seeds",
    ),
    (
        r"Detected \d+ total files|Unknown files in result directory",
        "pruned_results holds instances that do not count; upstream expects result files only",
    ),
    (r"CHECK for|Required|Failed checks|do not comply|Found parsing errors", "a log breaks a rule of upstream"),
    (r"Seed checker failed", "two runs have the same seed, or a run logs none"),
    (r"RCP Test Failed|Missing RCP|Cannot find any RCPs", "upstream compares with the reference runs of MLPerf HPC"),
    (r"System description", "systems/SYSTEM.json lacks fields"),
    (r"1 file does not comply", "one failed run counts as the slowest"),
    (r"KeyError|Traceback", "upstream's checker has no entry for this name"),
)
"""Message of upstream's checkers → why it stands."""


@dataclass(frozen=True)
class PackageFinding:
    """A message about a submission folder.

    source  checker that reported it
    reason  why it stands, or what to do
    """

    source: str
    message: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}\n    reason: {self.reason}"


def build(
    out: Path, system: str, time: TimeToQuality, throughput: Throughput | None = None,
    instances: Sequence[Path] = (),
) -> Path:  # fmt: skip
    """Write the submission folder ``out`` of the system named ``system`` and return the file that describes it.

    time        the score of the runs; their logs are submitted
    throughput  the score of the logs ``instances``, if they are submitted as well

    Raises ValueError for a folder that is not empty, a name that is no folder name, or a throughput without a time to
    quality.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: the folder is not empty; choose another one")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", system):
        raise ValueError(
            f"{system!r}: the name of a system is a folder name of letters, digits and . _ + -; such as 2xH100"
        )
    if throughput is not None and time.void:
        raise ValueError(f"a throughput is not submitted without a time to quality, which is void: {time.void}")
    results = out / "results" / system
    _copy([run.file for run in time.runs], results / "strong" / time.benchmark)
    if throughput is not None:
        folder = results / "weak" / time.benchmark
        _copy([file for file in instances if file not in throughput.pruned], folder)
        if throughput.pruned:
            _copy([file for file in instances if file in throughput.pruned], folder / "pruned_results")
    log = LogFile.read(time.runs[0].file)
    systems = out / "systems"
    systems.mkdir(parents=True)
    file = systems / f"{system}.json"
    file.write_text(json.dumps(describe(log, system, log.file.parent), indent=4) + "\n", encoding="utf-8")
    _write_implementation(out / "benchmarks" / time.benchmark / "implementations" / "ds4sci", log.file)
    return file


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"result_{number}.txt")


def _write_implementation(folder: Path, log: Path) -> None:
    """Copy the settings of the run of ``log``, and write how to repeat it."""
    folder.mkdir(parents=True)
    run = log.parents[1] if log.parent.name == "mlperf" else None
    copied = []
    for name in ("config.json", "deepspeed.json", "commit.txt"):
        if run is not None and (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
            copied.append(name)
    text = "# Implementation\n\nds4sci, https://pypi.org/project/ds4sci. "
    if copied:
        text += f"Settings of a run: {', '.join(copied)}. Repeat it with another seed:\n\n"
        text += "    ds4sci train config.json seed=1 train.name=run_1\n"
    else:
        text += "The settings of the runs were not beside their logs; add the run file and the DeepSpeed JSON here.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def check_folder(out: Path) -> list[PackageFinding]:
    """Run upstream's ``package_checker`` on a submission folder, and list what it reports.

    It runs the checkers of logs, seeds, reference convergence and system descriptions in turn. Fields of the system
    that are unknown, and a description of another host, are findings of ds4sci.
    """
    require("checking a submission folder")
    findings = _run("package_checker", [str(out.resolve()), "hpc", RULES_VERSION])
    for file in sorted((out / "systems").glob("*.json")):
        fields = json.loads(file.read_text(encoding="utf-8"))
        if unknown := [name for name, value in fields.items() if value == UNKNOWN]:
            message = f"{file.relative_to(out)}: {len(unknown)} of {len(fields)} fields are unknown"
            findings.append(PackageFinding("ds4sci", message, f"fill in: {', '.join(unknown)}"))
    logs = sorted(out.glob("results/*/strong/*/result_*.txt"))
    if logs and not is_this_host(LogFile.read(logs[0])):
        message = "the runs were made on another host than this one, so its hardware is not described"
        findings.append(PackageFinding("ds4sci", message, "build the folder on a host of the system, or fill it in"))
    return findings


def _run(checker: str, arguments: list[str]) -> list[PackageFinding]:
    """Run a checker of upstream in a process of its own and return its warnings and errors."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"mlperf_logging.{checker}", *arguments]
        done = subprocess.run(
            [*command, "--log_output", str(Path(folder) / "out.log")],
            cwd=folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        file = Path(folder) / "out.log"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
    messages = re.findall(r"^(?:WARNING|ERROR) - +(.*)$", text, flags=re.MULTILINE)
    if done.returncode != 0:
        messages.append(f"stopped with {done.stderr.strip().splitlines()[-1]}")
    return [PackageFinding(checker, message, _reason(message)) for message in dict.fromkeys(messages)]


def _reason(message: str) -> str:
    for pattern, reason in REASONS:
        if re.search(pattern, message):
            return reason
    return "not known to ds4sci; see the message"
