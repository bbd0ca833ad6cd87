"""How fast the data layer is: entries a second by gemmi and by Biopython, samples a second by the loader alone."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.clustering import chain_split
from ds4sci.data.loader import CropPhase, Plan, batches
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.text_files import read_bytes
from ds4sci.machine import provenance
from ds4sci.types import Batch


def run(
    json_out: str | Path,
    quick: bool = False,
    *,
    mmcif_files: Sequence[str | Path] = (),
    chains: str | Path | None = None,
    crops: Sequence[int] = (64, 96, 128),
) -> dict[str, Any]:
    """Measure, write the result to ``json_out`` and return it; ``quick`` is a smoke test, not a measurement.

    By default on the files of a checkout: ``tests/fixtures/mmcif`` and ``examples/fold/data/chains_train.npz``. The two
    parsers alternate in one run, each from the gzipped file to the atoms of every protein chain. ``ValueError`` if the
    files are not there.
    """
    root = Path(__file__).parents[2]
    files = [Path(path) for path in mmcif_files] or sorted((root / "tests" / "data" / "mmcif").glob("*.cif.gz"))
    chain_file = Path(chains) if chains else root / "examples" / "fold" / "data" / "chains_train.npz"
    if not files:
        raise ValueError(f"no mmCIF files in {root / 'tests' / 'data' / 'mmcif'}; name some with mmcif_files=[…]")
    rounds = 2 if quick else 15
    result: dict[str, Any] = {
        "machine": provenance.describe(),
        "quick": quick,
        "parsers": parsers(files, rounds),
        "open_seconds": spread(repeat(lambda: ChainSet.open(chain_file), rounds)),
        "loader": loader(ChainSet.open(chain_file), crops, 4 if quick else 100, 1 if quick else 7),
    }
    if not quick:
        result["clusters"] = clusters(ChainSet.open(chain_file))
    path = Path(json_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def parsers(files: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Entries a second of both parsers on the same files; medians over ``rounds`` that alternate A B A B."""
    readers: dict[str, Callable[[Path], Any]] = {"gemmi": mmcif.read, "biopython": biopython_atoms}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            began = time.perf_counter()
            for path in files:
                read(path)
            seconds[name].append(time.perf_counter() - began)
    entries = {name: spread([len(files) / took for took in times]) for name, times in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["gemmi"], seconds["biopython"], strict=True)]
    return {"files": [path.name for path in files], "entries_per_second": entries, "gemmi_is_faster": spread(ratios)}


def biopython_atoms(path: Path) -> list[np.ndarray]:
    """Positions [atoms, 3] of the first model's chains by Biopython's faster parser: less work than a record is."""
    import io

    from Bio.PDB.MMCIFParser import FastMMCIFParser

    text = io.StringIO(read_bytes(path).decode("utf-8", "replace"))
    structure = FastMMCIFParser(QUIET=True).get_structure("x", text)
    return [np.array([atom.coord for atom in chain.get_atoms()]) for chain in structure[0]]


def loader(chains: ChainSet, crops: Sequence[int], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Samples a second of micro-batches of four, without a model, by crop and number of workers."""
    rows = []
    for crop in crops:
        for workers in (0, 2):
            stream = batches(
                chains, seed=0, start_step=0, steps=1, rank=0, world_size=1, micro_batch_size=4, accumulation_steps=1,
                plan=Plan(phases=(CropPhase(crops=(crop,)),)), feature_config=FeatureConfig(), workers=workers,
            )  # fmt: skip
            next(stream)
            took = repeat(partial(_take, stream, steps), rounds)
            stream.close()  # type: ignore[attr-defined]
            rows.append({"crop": crop, "workers": workers, "samples_per_second": spread([4 * steps / t for t in took])})
    return rows


def _take(stream: Iterator[Batch], count: int) -> None:
    for _ in range(count):
        next(stream)


def clusters(chains: ChainSet) -> dict[str, Any]:
    """Processor seconds of clustering at 30 % identity, once."""
    began = time.process_time()
    found = chain_split.clusters(chains)
    return {"chains": len(chains), "clusters": len(found), "cpu_seconds": round(time.process_time() - began, 2)}


def repeat(action: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds that each of ``rounds`` calls took."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return took


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, to four digits."""
    return {
        name: float(f"{value:.4g}")
        for name, value in (("median", statistics.median(values)), ("min", min(values)), ("max", max(values)))
    }


if __name__ == "__main__":
    print(
        json.dumps(run(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/data.json", "--quick" in sys.argv), indent=2)
    )
