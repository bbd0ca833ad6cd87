"""The commands ``ds4sci data list``, ``info``, ``get`` and ``verify``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.cli import main
from ds4sci.datasets import manifest, registry
from tests.support.toy_dataset import NAME


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS4SCI_DATA", str(tmp_path / "store"))
    return tmp_path / "store"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main.main(["data", *arguments])
    return int(stopped.value.code or 0)


def test_list_shows_every_dataset_and_the_error_of_a_broken_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = registry.names()
    monkeypatch.setattr(registry, "names", lambda: [*names, "broken"])
    assert call("list") == 0
    shown = capsys.readouterr()
    lines = {line.split()[0]: line for line in shown.out.splitlines()}
    assert lines.keys() == {"name", *names}
    assert "bundled" in lines["pdb_chains"]
    assert "present" in lines["pdb_chains"]
    assert "absent" in lines["pdb_sequences"]
    assert "unknown dataset 'broken': there is no module ds4sci.datasets.broken" in shown.err


def test_info_shows_origin_licence_and_sums(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", "ecoli_genome") == 0
    shown = capsys.readouterr().out
    dataset = registry.find("ecoli_genome").dataset
    for text in (dataset.licence, dataset.origin, *dataset.files, *dataset.files.values(), dataset.sources[0].sha256):
        assert text in shown
    assert call("info", "ecoli_genom") == 2
    assert "did you mean 'ecoli_genome'?" in capsys.readouterr().err


def test_get_and_verify(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", NAME) == 1
    assert "missing" in capsys.readouterr().err
    assert call("get", NAME) == 0
    assert capsys.readouterr().out == f"{home / 'toy_dataset-3'}\n"
    assert call("verify", NAME) == 0
    assert call("get", NAME, "--to", str(tmp_path / "own"), "--from", str(home)) == 0
    (tmp_path / "own" / "train-00000.bin").write_bytes(b"x")
    capsys.readouterr()
    assert call("verify", NAME, "--to", str(tmp_path / "own")) == 1
    shown = capsys.readouterr().err
    assert "train-00000.bin: 1 bytes, expected 9,000" in shown
    assert f"ds4sci data get {NAME} --to {tmp_path / 'own'}" in shown
    assert call("get", NAME, "--from", str(tmp_path / "absent")) == 0  # present already
    assert call("get", "pdb_sequences", "--from", str(tmp_path)) == 2
    assert "no file sidechainnet-1.0.1-*.whl" in capsys.readouterr().err


def test_manifest_of_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scans"
    assert call("manifest", str(folder)) == 2
    assert "scans: no such folder" in capsys.readouterr().err
    folder.mkdir()
    assert call("manifest", str(folder)) == 2
    assert "no files" in capsys.readouterr().err
    (folder / "train-00000.bin").write_bytes(b"abc")
    assert call("manifest", str(folder), "--version", "2") == 0
    assert "1 files, 0.0 kB" in capsys.readouterr().out
    stored = manifest.read(folder)
    assert (stored.name, stored.version, [*stored.files]) == ("scans", "2", ["train-00000.bin"])
