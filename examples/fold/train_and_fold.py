"""Train the tiny structure model on the bundled chains and predict three validation chains, from Python."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds4sci.config.run_file import RunConfig
from ds4sci.inference.predict import predict_fasta
from ds4sci.train.run import train

HERE = Path(__file__).parent

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--name", default="train_and_fold", help="folder in runs/")
    options = parser.parse_args()

    overrides = [f"train.steps={options.steps}", f"train.name={options.name}", "data.evaluation_chains=8"]
    result = train(RunConfig.load("configs/fold/tiny_cpu.toml", overrides))
    print(f"{result.run}: lDDT-Cα {result.summary['lddt_ca']:.3f} after {result.step} steps")
    for path in predict_fasta(result.run, HERE / "example.fasta", result.run / "predictions"):
        print(path)
