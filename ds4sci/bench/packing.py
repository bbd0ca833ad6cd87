"""``ds4sci bench packing``: training steps on packed rows and on padded batches of the same real sequences.

The same documents, drawn at random from the run's sequences, in rows of the run's budget, and ``together`` at a time,
padded to the longest: by ds4sci's model, and by transformers' with its attention mask. Forward, loss, backward, AdamW.
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

from ds4sci.bench.measurement import Measurement, spread
from ds4sci.config.run_file import RunConfig
from ds4sci.data.language.batches import collate
from ds4sci.data.language.packing import make_rows
from ds4sci.machine.processor import usable_cores
from ds4sci.models.huggingface.parts import unwrap_peft
from ds4sci.tasks.language_modeling import LanguageTask
from ds4sci.train.build import build_task
from ds4sci.types import LanguageBatch

PACKED, PADDED, STOCK = "packed rows", "padded batches", "padded batches, transformers"


def measure(
    config_path: str, overrides: list[str], *, documents: int = 96, together: int = 8, rounds: int = 5
) -> Measurement:
    """Real tokens/s of the three ways, A B C A B C; and how far log-probabilities in rows are from those alone."""
    torch.manual_seed(0)
    config = RunConfig.load(config_path, overrides)
    task = build_task(config)
    if not isinstance(task, LanguageTask):
        raise ValueError(f"{config_path}: its task {config.task.name!r} is no language model")
    phase = task.config.data.phases[-1]
    reader, regions, _, _ = task.train_valid_readers()
    row = phase.row_length or phase.length
    rows = make_rows(
        regions, task.tokenizer, reader.residues, document_tokens=phase.length, row_tokens=row, seed=task.seed
    )
    chosen = (
        np.random.default_rng(task.seed).permutation(len(rows)).tolist()
    )  # the first rows are the longest documents
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
    for start in range(0, len(own), together):
        group = [own[i] for i in order[start : start + together]]
        longest = max(len(document.ids) for document, _ in group)
        padded.append(collate([[example] for example in group], -(-longest // 8) * 8, task.tokenizer.pad_id))
    step = _stepper(task)
    ways: dict[str, tuple[Callable[[LanguageBatch], None], list[LanguageBatch]]] = {
        PACKED: (step, packed),
        PADDED: (step, padded),
        STOCK: (_stock(task), padded),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (run, batches) in ways.items():
            began = time.perf_counter()
            for batch in batches:
                run(batch)
            if turn:
                rates[name].append(sum(batch.tokens for batch in batches) / (time.perf_counter() - began))
    lengths = [len(document.ids) for document, _ in own]
    apart = _apart(task, packed, own)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    filled = {
        name: sum(b.tokens for b in made) / sum(b.input_ids.numel() for b in made) for name, (_, made) in ways.items()
    }
    return Measurement(
        name="packing",
        title="Packed rows beside padded batches, a training step on real sequences",
        command=f"ds4sci bench packing {config_path}" + "".join(f" {x.split('=')[0]}=…" for x in overrides),
        columns=["", "real tokens/s", "spread", "tokens that are real", "times as fast as transformers"],
        rows=[
            [name, medians[name], f"{spread(values):.0%}", f"{filled[name]:.0%}", medians[name] / medians[STOCK]]
            for name, values in rates.items()
        ],
        notes=[
            f"{len(own)} documents of {min(lengths)} to {max(lengths)} tokens; rows of {row}, batches of "
            f"{together} padded to their longest; one process, fp32, {usable_cores()} threads",
            f"log-probabilities of a token in its row and alone, by transformers, differ by at most {apart:.1e} nats",
        ],
    )


def _stepper(task: LanguageTask) -> Callable[[LanguageBatch], None]:
    task.model.train()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.0)

    def step(batch: LanguageBatch) -> None:
        task.loss(task.model(batch), batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _plain(task: LanguageTask) -> Any:
    """transformers' own model with the same weights, and its own attention."""
    model = unwrap_peft(task.language.model)
    stock = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="sdpa")
    stock.load_state_dict(model.state_dict())
    return stock


def _stock(task: LanguageTask) -> Callable[[LanguageBatch], None]:
    model = _plain(task).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(batch: LanguageBatch) -> None:
        logits = model(input_ids=batch.input_ids, attention_mask=_mask(batch)).logits
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _mask(batch: LanguageBatch) -> Tensor:
    kept = torch.zeros(batch.input_ids.numel(), dtype=torch.long)
    for start, stop in batch.doc_spans.tolist():
        kept[start:stop] = 1
    return kept.view_as(batch.input_ids)


@torch.no_grad()
def _apart(task: LanguageTask, packed: list[LanguageBatch], own: list[Any]) -> float:
    """The largest difference of log-probabilities in packed rows from those of transformers, document by document."""
    model = _plain(task).eval()
    task.model.eval()
    worst, number = 0.0, 0
    for batch in packed:
        whole = task.language.log_probabilities(batch).flatten(0, 1)
        for start, stop in batch.doc_spans.tolist():
            given = torch.from_numpy(own[number][1].inputs)[None]
            alone = model(input_ids=given).logits[0].float().log_softmax(-1)
            worst = max(worst, float((whole[start:stop] - alone).abs().max()))
            number += 1
    return worst
