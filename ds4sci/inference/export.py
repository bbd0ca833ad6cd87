"""A trained language model as a Hugging Face folder: config, safetensors, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds4sci.files.atomic_files import new_folder, refuse_full
from ds4sci.machine import provenance
from ds4sci.train import checkpoint

TASK_TYPES = {"causal_lm": "CAUSAL_LM", "token_labels": "TOKEN_CLS", "masked_lm": None}
"""Kind of a model → peft's task type. It has none for masked models, whose class it keeps itself (``auto_mapping``)."""


def export_run(run: Path | str, out: Path | str, *, which: str = "best", adapter: bool = False) -> Path:
    """Write the weights of a run's checkpoint (EMA, fp32) into the new folder ``out``; returns it.

    ``AutoModel….from_pretrained(out)`` and ``AutoTokenizer.from_pretrained(out)`` read it without ds4sci. Adapters
    are merged into the weights; ``adapter`` writes them alone, with the name of their base model and its task, as
    ``peft.AutoPeftModel…`` reads them. The folder appears whole or not at all.

    Raises ValueError for a run or checkpoint that is not there or no language model, ``adapter`` without any or on a
    new model, and a folder that exists and is not empty.
    """
    run, out = Path(run), Path(out)
    refuse_full(out)
    config, loaded = checkpoint.load_run(run, which=which)
    task: Any = loaded
    if not hasattr(task, "pretrained"):
        raise ValueError(
            f"{run}: its task {config.task.name!r} has no Hugging Face form; export is for language models"
        )
    base = _base_model(run, which) if adapter and task.config.model.lora is not None else ""
    model, tokenizer = task.pretrained(adapter=adapter)
    if adapter:
        for one in model.peft_config.values():
            one.base_model_name_or_path = base
            one.task_type = TASK_TYPES[task.language.kind]
    with new_folder(out) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        origin = {"run": run.name, "checkpoint": checkpoint.chosen(run, which).name, "commit": provenance.commit()}
        (aside / "ds4sci.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    return out


def _base_model(run: Path, which: str) -> str:
    """``model.path`` of the run as it was started: a hub name, or an absolute folder.

    Raises ValueError for a run whose base model is new: its weights are in no folder that an adapter could name.
    """
    given = json.loads((checkpoint.chosen(run, which) / "config.json").read_text(encoding="utf-8"))["model"]
    path = given.get("path")
    if path is None or not given.get("weights", True):
        raise ValueError(
            f"{run}: its adapters stand on a model with new weights, which no other folder has; export it merged, "
            "without --adapter"
        )
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def files(folder: Path) -> list[tuple[str, int]]:
    """Names and bytes of what was written."""
    return [(file.name, file.stat().st_size) for file in sorted(folder.iterdir())]
