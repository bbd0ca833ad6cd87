"""Benchmarks of the data loader: samples/s without a model, and against the training step.

``python -m ds4sci.bench.loader [OUT.json] [--quick]`` measures parsers, loader and clustering of structures together.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ds4sci.bench.fold_step import training_step
from ds4sci.bench.measurement import FOLDER, Measurement, median_and_range, spread, synchronize, write
from ds4sci.bench.registry import OutFolder, Overrides, RunFile, show
from ds4sci.bench.structure_files import parsers
from ds4sci.config.run_file import RunConfig
from ds4sci.data.clustering import chain_split
from ds4sci.data.loader import CropPhase, Plan, batches
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig
from ds4sci.machine import provenance
from ds4sci.types import Batch

COMMAND = "data"
ROOT = Path(__file__).parents[2]
MMCIF_FOLDER = ROOT / "tests" / "fixtures" / "mmcif"


def command(
    config: RunFile = "configs/fold/tiny_cpu.toml", overrides: Overrides = None, out: OutFolder = FOLDER
) -> None:
    """Data loading: samples/s of the loader and of the training step."""
    measurement = measure(config, overrides or [])
    show(measurement, measurement.save(out))


def measure(config_path: str, overrides: list[str], *, n_batches: int = 8, rounds: int = 3) -> Measurement:
    """Samples/s of the loader and of the training step, with the data and crops of the end of the run.

    The end of the run is measured because a model may start with a part of its blocks and with short crops.
    """
    from ds4sci.tasks.build import build_task

    config = RunConfig.load(config_path, overrides)
    task = build_task(config)
    micro = int(config.deepspeed_config().get("train_micro_batch_size_per_gpu", 1))
    start = max(0, config.train.steps - rounds * n_batches - 1)
    stream = task.batches(start_step=start, rank=0, world_size=1, micro_batch_size=micro, accumulation_steps=1)
    step = training_step(config)
    step(next(stream))  # warms up both
    rates: dict[str, list[float]] = {"loader": [], "step": []}
    for _ in range(rounds):
        began = time.perf_counter()
        held = list(islice(stream, n_batches))
        loaded = time.perf_counter()
        for batch in held:
            step(batch)
        synchronize()
        rates["loader"].append(n_batches * micro / (loaded - began))
        rates["step"].append(n_batches * micro / (time.perf_counter() - loaded))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return Measurement(
        name="loading" if config.task.name == "fold" else f"loading_{Path(config_path).stem}",
        title="Data loader and training step",
        command=f"ds4sci bench data {config_path}",
        columns=["part", "samples/s", "spread", "samples/s relative to the step"],
        rows=[
            [name, medians[name], f"{spread(values):.0%}", medians[name] / medians["step"]]
            for name, values in rates.items()
        ],
        notes=[f"one process, micro batch {micro}, {rounds} rounds of {n_batches} batches, A B A B; end of the run"],
    )


def run(
    json_out: str | Path,
    quick: bool = False,
    *,
    mmcif_files: Sequence[str | Path] = (),
    chains: str | Path | None = None,
    crops: Sequence[int] = (64, 96, 128),
) -> dict[str, Any]:
    """Measure parsers, loader and clustering, write the result to ``json_out`` and return it.

    The default inputs are files of a checkout: ``tests/fixtures/mmcif`` and ``examples/fold/data/chains_train.npz``.
    ``quick`` runs a smoke test. Raises ValueError if there are no mmCIF files.
    """
    files = [Path(path) for path in mmcif_files] or sorted(MMCIF_FOLDER.glob("*.cif.gz"))
    chain_file = Path(chains) if chains else ROOT / "examples" / "fold" / "data" / "chains_train.npz"
    if not files:
        raise ValueError(f"{MMCIF_FOLDER}: no *.cif.gz files; name mmCIF files with mmcif_files=[…]")
    rounds = 2 if quick else 15
    result: dict[str, Any] = {
        "machine": provenance.describe(),
        "quick": quick,
        "parsers": parsers(files, rounds),
        "open_seconds": median_and_range(seconds_of_calls(lambda: ChainSet.open(chain_file), rounds)),
        "loader": loader(ChainSet.open(chain_file), crops, 4 if quick else 100, 1 if quick else 7),
    }
    if not quick:
        result["clusters"] = clusters(ChainSet.open(chain_file))
    write(Path(json_out), result)
    return result


def loader(chains: ChainSet, crops: Sequence[int], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Samples/s of micro-batches of four without a model, for each crop length and number of workers."""
    rows = []
    for crop in crops:
        for workers in (0, 2):
            stream = batches(
                chains, seed=0, start_step=0, steps=1, rank=0, world_size=1, micro_batch_size=4, accumulation_steps=1,
                plan=Plan(phases=(CropPhase(crops=(crop,)),)), feature_config=FeatureConfig(), workers=workers,
            )  # fmt: skip
            next(stream)
            times = seconds_of_calls(partial(_take, stream, steps), rounds)
            stream.close()  # type: ignore[attr-defined]
            rates = median_and_range([4 * steps / seconds for seconds in times])
            rows.append({"crop": crop, "workers": workers, "samples_per_second": rates})
    return rows


def _take(stream: Iterator[Batch], count: int) -> None:
    for _ in range(count):
        next(stream)


def clusters(chains: ChainSet) -> dict[str, Any]:
    """CPU seconds of one clustering at 30 % identity."""
    start = time.process_time()
    found = chain_split.clusters(chains)
    return {"chains": len(chains), "clusters": len(found), "cpu_seconds": round(time.process_time() - start, 2)}


def seconds_of_calls(action: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each of ``rounds`` calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    path = next((argument for argument in sys.argv[1:] if argument != "--quick"), str(FOLDER / "data.json"))
    print(json.dumps(run(path, "--quick" in sys.argv), indent=2))
