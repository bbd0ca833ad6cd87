"""Program of one rank in the tests of sequence parallelism: a step of a language model, with its gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ds4sci.losses.language import weighted_mean
from ds4sci.train import engine as engines
from ds4sci.train.distributed import set_rank_environment
from tests.support import language_oracle as oracle

LENGTHS = {"packed": [[17, 9, 30], [25, 31], [40, 20], [50, 11]], "padded": [[40], [23], [64], [5]]}
"""Documents of the four rows of a step."""


def rows(case: dict[str, Any]) -> tuple[str, dict[str, Any], list[list[int]]]:
    """Return (kind, model config, documents) of a case."""
    return case["kind"], oracle.ESM if case["kind"] == "masked_lm" else oracle.LLAMA, LENGTHS[case["rows"]]


def steps(cases_file: str, out: str) -> None:
    """Train one micro-batch of each case; rank 0 saves loss, norm and unsharded gradients to ``out``.

    All cases have the same ``sequence``, since groups are created once.
    """
    set_rank_environment()
    engines.silence_deepspeed()
    cases = json.loads(Path(cases_file).read_text())
    context = engines.init_distributed(cases[0]["deepspeed"], cases[0]["sequence"])
    found = [_step(case, Path(cases_file).with_name(f"ds{number}.json"), context) for number, case in enumerate(cases)]
    if context.is_main:
        torch.save(found, out)


def _step(case: dict[str, Any], file: Path, context: Any) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_grad

    if context.is_main:
        file.write_text(json.dumps(case["deepspeed"]))
    context.barrier()
    group = context.sequence
    kind, sizes, all_rows = rows(case)
    model = oracle.model(kind, sizes, getattr(torch, case["dtype"]), activation_budget=case.get("activation_budget"))
    model.group = group
    share = len(all_rows) // group.data_size
    mine = part(oracle.batch(kind, all_rows, 64), group.data_rank * share, (group.data_rank + 1) * share)
    for _ in range(2 if case.get("activation_budget") else 0):
        model.train()(mine)  # the first steps count what layers keep
    engine = engines.Engine(model, file, context)
    engine.module.train()
    loss = weighted_mean(engine.deepspeed(mine), mine)
    count = float(mine.weights.double().sum())
    share = count / (context.all_reduce_sum(count) / group.size)
    engine.backward(loss, share)
    grads = {}
    for name, p in engine.module.named_parameters():
        grad = p.grad if engine.zero_stage == 0 else safe_get_full_grad(p)
        grads[name] = grad.detach().double().clone() if grad is not None else None
    engine.step()
    engine.deepspeed.destroy()
    return {"loss": context.all_reduce_sum(share * float(loss.detach())), "norm": engine.grad_norm, "grads": grads}


def part(batch: Any, first: int, last: int) -> Any:
    """Return rows ``first`` … ``last`` − 1 of a batch."""
    from dataclasses import replace

    n = batch.input_ids.shape[1]
    here = [(a - first * n, b - first * n) for a, b in batch.doc_spans.tolist() if first * n <= a < last * n]
    names = ("input_ids", "labels", "weights", "position_ids", "soft_masked")
    return replace(
        batch, doc_spans=torch.tensor(here).view(-1, 2), **{name: getattr(batch, name)[first:last] for name in names}
    )
