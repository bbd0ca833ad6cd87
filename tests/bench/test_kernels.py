"""``ds4sci bench kernels``: single operations and arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds4sci.cli.main import main


@pytest.mark.nightly
def test_quick_operations(tmp_path: Path) -> None:
    out = tmp_path / "operations.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", "kernels", "--op", "transition", "--quick", "--json", str(out)])
    assert not done.value.code
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert len(saved["rows"]) == 8  # ReLU and SwiGLU, two dtypes, with and without backward
    assert {r["implementation"] for r in saved["measured"]} >= {"tiled", "reference"}


def test_unknown_operation_is_rejected(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--op", "convolution", "--json", str(tmp_path / "x.json")])
    assert "--op convolution" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "kernels", "--case", "circle", "--json", str(tmp_path / "x.json")])
    assert "--case 'circle': unknown case; expected one of: MSA row, " in capsys.readouterr().err
