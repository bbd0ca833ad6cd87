"""The command line: commands, error messages, and the findings of ``doctor``."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ds4sci.cli import doctor, main
from ds4sci.data.structures.chain_set import ChainSet

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> int:
    """Exit code of ``ds4sci ARGUMENTS``."""
    with pytest.raises(SystemExit) as stopped:
        main.main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train"], ["CONFIG", "--resume", "--deepspeed_config"]),
        (["eval"], ["--run", "--chains", "--json"]),
        (["predict"], ["--run", "--fasta", "--out", "--msa"]),
        (["data", "build"], ["SRC_DIR", "OUT.npz"]),
        (["report"], ["RUN"]),
        (["bench"], ["data", "kernels", "parse", "step"]),
        (["doctor"], ["--json"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_commands_keep_their_names(command: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert [word for word in words if word not in shown] == []


def test_user_error_is_one_message_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call("train", str(tmp_path / "absent.toml")) == 2
    shown = capsys.readouterr().err
    assert "absent.toml" in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"absent\.toml"):
        main.main(["--debug", "train", str(tmp_path / "absent.toml")])


def test_train_without_arguments_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train") == 2
    assert "--resume RUN" in capsys.readouterr().err


def test_doctor_reports_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", "--json") == 0
    findings = json.loads(capsys.readouterr().out)
    sections = {finding["section"] for finding in findings}
    assert sections >= {"packages", "processor", "accelerators", "compiler", "extensions", "disk", "extras", "kernels"}
    assert call("doctor") == 0
    shown = capsys.readouterr().out
    assert [section for section in sections if section not in shown] == []
    assert "evoformer_attention" in shown


def test_doctor_lists_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "gemmi" else real(name))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert call("doctor") == 1
    shown = capsys.readouterr().out
    assert "pip install gemmi" in shown
    assert "apt-get install -y g++" in shown


def test_doctor_distinguishes_interrupted_and_running_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in ("killed", "running", "done"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.flock").touch()
    (tmp_path / "killed" / "lock").touch()
    (tmp_path / "done" / "done.so").touch()
    with (tmp_path / "running.flock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        seen = {finding.name: finding.detail for finding in doctor.extensions()}
    assert "left its lock file" in seen["killed"]
    assert "another process" in seen["running"]
    assert seen["done"] == "built"


def test_data_split_by_clusters_and_leakage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = ChainSet.open(ROOT / "examples/fold/data/chains_valid.npz")[:12]
    twin = replace(records[0], id="9TWN_A")
    ChainSet.write(tmp_path / "all.npz", [*records, twin])
    sides = [str(tmp_path / name) for name in ("train.npz", "valid.npz")]
    assert call("data", "split", str(tmp_path / "all.npz"), *sides, "--fraction", "0.3") == 0
    train, valid = (set(ChainSet.open(side).ids) for side in sides)
    assert len(train) + len(valid) == 13
    assert (twin.id in train) == (records[0].id in train)  # both are in one cluster
    assert call("data", "leakage", *sides) == 0
    capsys.readouterr()
    assert call("data", "leakage", str(tmp_path / "all.npz"), sides[1]) == 1
    assert "leakage" in capsys.readouterr().err
