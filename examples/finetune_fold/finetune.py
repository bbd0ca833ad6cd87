"""Fine-tune a structure model from a file of weights, compare it with its start, and export it for OpenFold."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds4sci.config.run_file import RunConfig
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.export import export_run
from ds4sci.train.run import train

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/fold/model_3.toml")
    parser.add_argument("--weights", required=True, help="params_model_3.npz, an OpenFold .pt, or safetensors")
    parser.add_argument("--out", type=Path, default=Path("exported"), help="new folder for openfold.pt")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.train=train data.valid=valid")
    options = parser.parse_args()

    config = RunConfig.load(options.config, [f"train.weights={options.weights}", *options.overrides])
    result = train(config)
    chains = {"chains": config.settings.data.valid}
    for checkpoint in ("untrained", "best"):  # the weights of the file, and the fine-tuned ones
        scores = evaluate_run(result.run, files=chains, which=checkpoint, show=False)["mean"]
        print(f"{checkpoint}: lDDT-Cα {scores['lddt_ca']:.3f}, TM-score {scores['tm_score']:.3f}")
    print(export_run(result.run, options.out))
