"""Benchmark of sequence packing: training steps on packed rows, baseline: padded batches of the same sequences.

The documents are drawn at random from the sequences of the run. They are packed into rows of the run's length, or
batched and padded to the longest; the padded batches run through ds4sci's model, and through transformers' with its
attention mask. A step is forward, loss, backward, AdamW.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ds4sci.bench.measurement import FOLDER, Measurement, spread
from ds4sci.bench.registry import OutFolder, Overrides, RunFile, show
from ds4sci.config.run_file import RunConfig
from ds4sci.data.language.batches import collate
from ds4sci.data.language.packing import make_rows
from ds4sci.machine.processor import usable_cores
from ds4sci.models.huggingface.parts import unwrap_peft
from ds4sci.tasks.build import build_task, default_kernels
from ds4sci.tasks.language_modeling import LanguageModelingTask
from ds4sci.types import LanguageBatch

PACKED, PADDED, TRANSFORMERS = "packed rows", "padded batches", "padded batches, transformers"


def command(
    config: RunFile = "configs/lm/protein_tiny.toml", overrides: Overrides = None, out: OutFolder = FOLDER
) -> None:
    """Sequence packing: real tokens/s of a training step on packed rows and on padded batches."""
    measurement = measure(config, overrides or [])
    show(measurement, measurement.save(out))


def measure(
    config_path: str, overrides: list[str], *, documents: int = 96, batch_size: int = 8, rounds: int = 5
) -> Measurement:
    """Real tokens/s of the three methods, A B C A B C, and the largest change of a log-probability by packing."""
    torch.manual_seed(0)
    config = RunConfig.load(config_path, overrides)
    task = build_task(config)
    if not isinstance(task, LanguageModelingTask):
        raise ValueError(
            f"{config_path}: task {config.task.name!r} does not train a language model; use a run file of configs/lm"
        )
    phase = task.config.data.phases[-1]
    reader, regions, _, _ = task.train_valid_readers()
    row = phase.row_length or phase.length
    rows = make_rows(
        regions, task.tokenizer, reader.residues, document_tokens=phase.length, row_tokens=row, seed=task.seed
    )
    # shuffled, because the first rows hold the longest documents
    chosen = np.random.default_rng(task.seed).permutation(len(rows)).tolist()
    examples: list[tuple[int, Any]] = []  # (row, document with its inputs and labels)
    taken = 0
    while len(examples) < documents and taken < len(chosen):
        for number in rows.documents(chosen[taken]):
            rng = np.random.default_rng([task.seed, taken, number])
            read = reader.document(int(rows.record[number]), int(rows.start[number]), int(rows.stop[number]))
            examples.append((taken, (read, task.masking_policy.apply(read, rng))))
        taken += 1
    packed = [collate([[e for r, e in examples if r == number]], row, task.tokenizer.pad_id) for number in range(taken)]
    own = [example for _, example in examples]
    order = np.random.default_rng(0).permutation(len(own))
    padded = []
    for start in range(0, len(own), batch_size):
        group = [own[i] for i in order[start : start + batch_size]]
        longest = max(len(document.ids) for document, _ in group)
        padded.append(collate([[example] for example in group], -(-longest // 8) * 8, task.tokenizer.pad_id))
    step = _ds4sci_step(task)
    methods: dict[str, tuple[Callable[[LanguageBatch], None], list[LanguageBatch]]] = {
        PACKED: (step, packed),
        PADDED: (step, padded),
        TRANSFORMERS: (_transformers_step(task), padded),
    }
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, (run, batches) in methods.items():
            began = time.perf_counter()
            with default_kernels(config):
                for batch in batches:
                    run(batch)
            if turn:
                rates[name].append(sum(batch.tokens for batch in batches) / (time.perf_counter() - began))
    lengths = [len(document.ids) for document, _ in own]
    with default_kernels(config):
        difference = _largest_difference(task, packed, own)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    filled = {
        name: sum(b.tokens for b in made) / sum(b.input_ids.numel() for b in made)
        for name, (_, made) in methods.items()
    }
    return Measurement(
        name="packing",
        title="A training step on packed rows of real sequences, baseline: padded batches",
        command=f"ds4sci bench packing {config_path}" + "".join(f" {x.split('=')[0]}=…" for x in overrides),
        columns=["method", "real tokens/s", "spread", "fraction of real tokens", "speed-up"],
        rows=[
            [name, medians[name], f"{spread(values):.0%}", f"{filled[name]:.0%}", medians[name] / medians[TRANSFORMERS]]
            for name, values in rates.items()
        ],
        notes=[
            f"{len(own)} documents of {min(lengths)} to {max(lengths)} tokens; rows of {row} tokens, batches of "
            f"{batch_size} padded to the longest; one process, fp32, {usable_cores()} threads",
            "log-probabilities of a token in its packed row and in its own document, by transformers, differ by at "
            f"most {difference:.1e} nats; baseline: padded batches, transformers",
        ],
    )


def _ds4sci_step(task: LanguageModelingTask) -> Callable[[LanguageBatch], None]:
    task.model.train()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.0)

    def step(batch: LanguageBatch) -> None:
        task.loss(task.model(batch), batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _transformers_model(task: LanguageModelingTask) -> Any:
    """The model of transformers with the same weights and SDPA attention."""
    model = unwrap_peft(task.language.model)
    copied = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="sdpa")
    copied.load_state_dict(model.state_dict())
    return copied


def _transformers_step(task: LanguageModelingTask) -> Callable[[LanguageBatch], None]:
    model = _transformers_model(task).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(batch: LanguageBatch) -> None:
        logits = model(input_ids=batch.input_ids, attention_mask=_attention_mask(batch)).logits
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _attention_mask(batch: LanguageBatch) -> Tensor:
    mask = torch.zeros(batch.input_ids.numel(), dtype=torch.long)
    for start, stop in batch.doc_spans.tolist():
        mask[start:stop] = 1
    return mask.view_as(batch.input_ids)


@torch.no_grad()
def _largest_difference(task: LanguageModelingTask, packed: list[LanguageBatch], own: list[Any]) -> float:
    """Largest difference between log-probabilities in packed rows and those of transformers for each document."""
    model = _transformers_model(task).eval()
    task.model.eval()
    worst, number = 0.0, 0
    for batch in packed:
        whole = task.language.log_probabilities(batch).flatten(0, 1)
        for start, stop in batch.doc_spans.tolist():
            given = torch.from_numpy(own[number][1].inputs)[None]
            single = model(input_ids=given).logits[0].float().log_softmax(-1)
            worst = max(worst, float((whole[start:stop] - single).abs().max()))
            number += 1
    return worst
