"""A trained language model as a Hugging Face folder: config, safetensors, tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ds4sci import machine
from ds4sci.train import checkpoint


def export_run(run: Path | str, out: Path | str, *, which: str = "best", adapter: bool = False) -> Path:
    """Write the weights of a run's checkpoint (EMA, fp32) into the new folder ``out``; returns it.

    ``AutoModel….from_pretrained(out)`` and ``AutoTokenizer.from_pretrained(out)`` read it without ds4sci. Adapters
    are merged into the weights; ``adapter`` writes them alone, as ``peft`` reads them. The folder appears whole or not
    at all.

    Raises ValueError for a run or checkpoint that is not there or no language model, ``adapter`` without any, and a
    folder that exists and is not empty.
    """
    run, out = Path(run), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already; name a new folder")
    config, task = checkpoint.load_run(run, which=which)
    if not hasattr(task, "pretrained"):
        raise ValueError(
            f"{run}: its task {config.task.name!r} has no Hugging Face form; export is for language models"
        )
    model, tokenizer = task.pretrained(adapter=adapter)
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        origin = {"run": run.name, "checkpoint": checkpoint.chosen(run, which).name, "commit": machine.commit()}
        (aside / "ds4sci.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def files(folder: Path) -> list[tuple[str, int]]:
    """Names and bytes of what was written."""
    return [(file.name, file.stat().st_size) for file in sorted(folder.iterdir())]
