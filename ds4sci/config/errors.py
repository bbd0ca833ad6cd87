"""Messages about unknown keys of a run file: location, likely intention, owner."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ds4sci.config import renamed

JSON_KEY_ALIASES = {
    "train_batch_size": "train_batch_size batch_size global_batch_size batch",
    "train_micro_batch_size_per_gpu": "train_micro_batch_size_per_gpu micro_batch_size micro_batch batch_per_gpu",
    "gradient_accumulation_steps": "gradient_accumulation_steps accumulation_steps accumulation grad_accum accumulate",
    "gradient_clipping": "gradient_clipping gradient_clip clip clip_norm grad_clip max_grad_norm clipping",
    "bf16, fp16 or torch_autocast": "bf16 fp16 fp32 precision dtype amp autocast torch_autocast mixed_precision",
    "optimizer": "optimizer optim adam adamw torch_adam",
    "optimizer.params.lr": "lr learning_rate max_lr",
    "optimizer.params.weight_decay": "weight_decay",
    "optimizer.params.betas": "betas beta1 beta2 momentum",
    "optimizer.params.eps": "eps",
    "scheduler": "scheduler schedule lr_scheduler lr_schedule warmup warmup_steps warmup_num_steps decay_steps",
    "zero_optimization": "zero zero_stage zero_optimization stage zero1 zero2 zero3",
    "zero_optimization.offload_optimizer": "offload offload_optimizer offload_param cpu_offload",
    "wandb": "wandb use_wandb",
    "tensorboard": "tensorboard use_tensorboard",
    "csv_monitor": "csv_monitor csv monitor",
    "steps_per_print": "steps_per_print",
}
"""Key of the DeepSpeed JSON → names of the same setting in other trainers."""


def owner_in_json(key: str) -> str | None:
    """Return the key of the DeepSpeed JSON that holds the setting ``key``, or None."""
    lowered = key.lower()
    for owner, names in JSON_KEY_ALIASES.items():
        if lowered in names.split():
            return owner
    return None


def locate(file: Path, text: str, keys: tuple[str, ...]) -> str:
    """Return ``file:line`` of a dotted key in a TOML text, or ``file`` where the text does not contain the key."""
    if file.suffix != ".toml":
        return str(file)
    sections = [key for key in keys if not key.isdigit()]
    current: list[str] = []
    best: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            current = [part.strip().strip("\"'") for part in header[1].split(".")]
            if current == sections:
                best = best or number
        elif assignment := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            path = current + [part.strip("\"'") for part in assignment[1].split(".")]
            if path == sections or (len(path) < len(sections) and path == sections[: len(path)]):
                best = number
                if path == sections:
                    break
    return f"{file}:{best}" if best else str(file)


def unknown_key(location: str, keys: tuple[str, ...], valid: list[str]) -> str:
    """Return the message for the unknown key ``keys`` at ``location``; ``valid`` are the names valid in its section."""
    dotted, name = ".".join(keys), keys[-1]
    new = renamed.new_key(keys)
    new_section, _, new_name = (new or "").rpartition(".")
    if new is not None and (new_name in valid or new_section == "train"):  # every run file has [train]
        return f"{location}: {renamed.key_message(dotted, new)}"
    owner = owner_in_json(name)
    if owner is None and len(keys) > 1:
        owner = owner_in_json(keys[0])
    if owner is not None:
        return (
            f"{location}: {dotted} is owned by the DeepSpeed JSON: set {owner} in the file that `deepspeed = …` names"
        )
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    section = f"[{'.'.join(keys[:-1])}]" if len(keys) > 1 else "the top level"
    hint = f"; did you mean {'.'.join((*keys[:-1], near[0]))}?" if near else "."
    return f"{location}: unknown key {dotted}{hint} Valid in {section}: {', '.join(valid) or 'nothing'}"
