"""The command line: commands and error messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ds4sci.cli import main
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
        (["doctor"], ["CONFIG", "--ranks", "--json"]),
        (["selftest"], ["CONFIG", "--ranks", "--json"]),
        (["plan"], ["CONFIG", "--gpus", "--gpu-memory", "--host-memory", "--pipeline", "--json"]),
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
