"""A generated dataset for tests. With ``TOY_DATASET_PAUSE`` set, ``make`` stops after its first file: it creates that
file as a sign, and sleeps."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from ds4sci.datasets.dataset import Dataset

NAME = "tests.support.toy_dataset"
FILES = {"train-00000.bin": b"training " * 1000, "more/valid-00000.bin": b"validation " * 1000}

DATASET = Dataset(
    name="toy_dataset",
    version="3",
    title="two files",
    origin="generated",
    licence="CC0",
    splits={"train": "1", "valid": "1"},
    size=20_000,
)


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    log = os.environ.get("TOY_DATASET_LOG")
    if log:
        with Path(log).open("a") as handle:
            handle.write("made\n")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        if sign := os.environ.get("TOY_DATASET_PAUSE"):
            Path(sign).touch()
            time.sleep(600)
