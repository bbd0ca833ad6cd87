"""The scripts of the examples run as documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_patch_esmfold() -> None:
    pytest.importorskip("transformers.models.esm.modeling_esmfold")
    script = ROOT / "examples" / "patch_esmfold" / "run.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    command = [sys.executable, str(script), "--n", "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report, numbers = done.stdout.split("\n", 1)
    assert report == "ds4sci: 16 modules of Trunk are patched"
    found = re.search(r"relative difference: outputs (\S+), gradients (\S+)\n", numbers)
    assert found
    assert all(0 < float(difference) < 1e-5 for difference in found.groups())
    assert re.search(r"\n +9 +float32 +forward .+\n +9 +float32 +forward \+ backward ", numbers)
