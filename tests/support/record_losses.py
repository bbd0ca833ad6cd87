"""Recording and exact comparison of the first losses of every shipped run file.

    python tests/support/record_losses.py before.json                        # at the commit before a change
    python tests/support/record_losses.py after.json --against before.json   # exits with 1 if a number differs

Two recordings, made by two commits on one machine, show that a refactoring changes no number: losses, their terms and
gradient norms must be equal to the last bit. Another processor may have other vector instructions, so recordings of
different machines are not comparable. ``--checkout FOLDER`` records another checkout with its own ``.venv``. ``--only``
and ``--ranks`` select recordings; all of them take about 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
FOLD = ["data.evaluation_chains=2", "data.evaluation_recycling=0"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "fold_tiny": ("configs/fold/tiny_cpu.toml", FOLD),
    "fold_small": ("configs/fold/small.toml", FOLD),
    "protein": ("configs/lm/protein_tiny.toml", []),
    "genome": ("configs/lm/genome_tiny.toml", []),
    "labels": ("configs/lm/secondary_structure_full.toml", []),
    "labels_lora": ("configs/lm/secondary_structure.toml", []),
    "burgers": ("configs/operator/burgers.toml", []),
    "plate": ("configs/operator/plate.toml", []),
    "reaction_diffusion": ("configs/operator/reaction_diffusion.toml", []),
    "stokes": ("configs/operator/stokes.toml", []),
}
"""Name → run file and overrides. ``labels`` and ``labels_lora`` start from the model exported by ``protein``."""

RECORDED = ("loss", "loss_terms", "grad_norm")
"""Keys of ``metrics.jsonl`` that are compared."""

RENAMED_TERMS = {"start_fape": "initial_frames_fape"}
"""Loss terms with another name in recordings of version 0.1."""


def record(checkout: Path, only: list[str], ranks: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Return ``{"NAME, R ranks": [{"step": …, "loss": …, "loss_terms": …, "grad_norm": …}, …]}``, one dict per step."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (config, overrides) in RUNS.items():
        if only and name not in only:
            continue
        for count in ranks:
            run = f"losses_{name}_{count}"
            shutil.rmtree(checkout / "runs" / run, ignore_errors=True)
            if name.startswith("labels"):
                overrides = [f"model.path={_exported(checkout)}"]
            start = time.monotonic()
            every_step = [f"train.steps={STEPS}", f"train.evaluate_every={STEPS}", "train.log_every=1"]
            _ds4sci(checkout, "train", config, "--ranks", str(count), f"train.name={run}", *every_step, *overrides)
            lines = (checkout / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [line for line in map(json.loads, lines) if line.get("kind") == "train"]
            found[f"{name}, {count} ranks"] = [{key: step.get(key) for key in ("step", *RECORDED)} for step in steps]
            print(f"{name}, {count} ranks: {len(steps)} steps, {time.monotonic() - start:.0f} s", flush=True)
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return one sentence for each recording that is missing or differs between two results of ``record``."""
    found = []
    for name, steps in before.items():
        if name not in after:
            found.append(f"{name}: not recorded")
        elif len(steps) != len(after[name]):
            found.append(f"{name}: {len(after[name])} steps instead of {len(steps)}")
        else:
            pairs = zip(map(_with_current_names, steps), after[name], strict=True)
            wrong = next(((a, b) for a, b in pairs if a != b), None)
            if wrong:
                found.append(f"{name}: step {wrong[0]['step']} differs: {wrong[0]} before, {wrong[1]} now")
    return found


def _with_current_names(step: dict[str, Any]) -> dict[str, Any]:
    """Return ``step`` with the current names of its loss terms."""
    return step | {"loss_terms": {RENAMED_TERMS.get(name, name): x for name, x in step["loss_terms"].items()}}


def _exported(checkout: Path) -> Path:
    """Return the masked language model of the run ``protein`` as a Hugging Face folder; export it if necessary."""
    folder = checkout / "runs" / "losses_exported"
    if not folder.exists():
        _ds4sci(checkout, "export", "--run", "runs/losses_protein_1", str(folder))
    return folder


def _ds4sci(checkout: Path, *arguments: str) -> None:
    program = [str(checkout / ".venv" / "bin" / "python"), "-m", "ds4sci", *arguments]
    done = subprocess.run(program, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="checkout to record; by default this one")
    parser.add_argument("--against", type=Path, help="earlier recording to compare with")
    parser.add_argument("--only", nargs="*", default=[], choices=list(RUNS), help="recordings to make")
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2], help="numbers of ranks")
    options = parser.parse_args()
    recorded = record(options.checkout.resolve(), options.only, options.ranks)
    options.out.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text(encoding="utf-8"))
    chosen = {
        name: steps
        for name, steps in before.items()
        if (not options.only or name.split(",")[0] in options.only) and int(name.split()[-2]) in options.ranks
    }
    wrong = differences(chosen, recorded)
    print("\n".join(wrong) or f"all {len(chosen)} recordings are identical")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
