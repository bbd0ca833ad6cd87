"""``ds4sci weights inspect`` and ``ds4sci weights convert``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ds4sci.cli.main import app, main
from tests.support import synthetic_weights as synthetic


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["weights", *(str(argument) for argument in arguments)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    file = tmp_path / "params_model_1_ptm.npz"
    np.savez(file, **synthetic.parameters(synthetic.shapes(synthetic.SMALL)))
    return file


def test_inspect_describes_a_file(npz: Path) -> None:
    printed = call("inspect", npz)
    for words in (
        "AlphaFold 2 names, .npz",
        "338 arrays, 582 tensors, 29,930 parameters, float32",
        "AlphaFold 2 in other sizes: model.c_m=12 model.c_z=8",
        "template_embedder.*: 129 tensors, 5,524 parameters: used by a model with model.template.blocks=2",
        "CC BY 4.0",
    ):
        assert words in printed


def test_convert_writes_the_format_of_the_ending(npz: Path, tmp_path: Path) -> None:
    printed = call("convert", npz, tmp_path / "a.safetensors", "--names", "openfold")
    assert "582 tensors, 29,930 parameters, from AlphaFold 2 names, .npz" in printed
    assert "OpenFold names, .safetensors" in call("inspect", tmp_path / "a.safetensors")
    call("convert", tmp_path / "a.safetensors", tmp_path / "b.npz")
    with np.load(npz, allow_pickle=False) as first, np.load(tmp_path / "b.npz", allow_pickle=False) as last:
        assert all(np.array_equal(first[name], last[name]) for name in first.files)


def test_parts_are_left_out_on_request(npz: Path, tmp_path: Path) -> None:
    """A model with templates becomes one without them, as OpenFold's presets model_3 to model_5 read it."""
    skip = ("--skip", "template_embedder.*", "--skip", "heads.tm.*")
    assert f"{582 - 129 - 2} tensors" in call("convert", npz, tmp_path / "a.pt", *skip)
    assert "not used" not in call("inspect", tmp_path / "a.pt")


def test_errors_are_one_message(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["weights", "convert", str(npz), str(tmp_path / "out.h5")])
    assert "out.h5: unknown ending '.h5'" in capsys.readouterr().err
