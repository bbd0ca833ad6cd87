"""Program of one rank in the tests of neural operators: a step on DeepSpeed, with its gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ds4sci.tasks import neural_operator
from ds4sci.train import engine as engines
from ds4sci.train.distributed import set_rank_environment

SETTINGS = {
    "model": {"branch": [8, 8], "trunk": [8, 8], "latent": 6},
    "data": {"points": 24, "boundary_points": 6, "valid_functions": 3},
}
FUNCTIONS = 4


def task(pde: str, derivatives: str = "zcs") -> neural_operator.NeuralOperatorTask:
    settings = {"pde": {"name": pde}, "loss": {"derivatives": derivatives}, **SETTINGS}
    return neural_operator.build(neural_operator.Config.model_validate(settings), seed=0, steps=1)


def batch(made: neural_operator.NeuralOperatorTask, rank: int = 0, world: int = 1) -> Any:
    """Return this rank's functions of step 0."""
    return next(
        made.batches(
            start_step=0, rank=rank, world_size=world, micro_batch_size=FUNCTIONS // world, accumulation_steps=1
        )
    )


def steps(cases_file: str, out: str) -> None:
    """Do one step of each case; rank 0 saves loss and unsharded gradients to ``out``."""
    from deepspeed.utils import safe_get_full_grad

    set_rank_environment()
    engines.silence_deepspeed()
    cases = json.loads(Path(cases_file).read_text())
    context = engines.init_distributed(cases[0]["deepspeed"])
    found = []
    for number, case in enumerate(cases):
        file = Path(cases_file).with_name(f"ds{number}.json")
        if context.is_main:
            file.write_text(json.dumps(case["deepspeed"]))
        context.barrier()
        made = task(case["pde"], case["derivatives"])
        engine = engines.Engine(made.model, file, context)
        engine.module.train()
        own = batch(made, context.rank, context.world_size)
        loss, _ = made.loss(engine.deepspeed(own), own)
        engine.backward(loss, 1 / context.world_size)
        grads = {
            name: (p.grad if engine.zero_stage == 0 else safe_get_full_grad(p)).detach().double().clone()
            for name, p in engine.module.named_parameters()
        }
        engine.step()
        engine.module.eval()
        errors = [row["errors"] for row in made.evaluate(
            engine.deepspeed, rank=context.rank, world_size=context.world_size, device=context.device
        )]  # fmt: skip
        total = sum(context.gather(float(loss.detach()))) / context.world_size
        found.append({"loss": total, "grads": grads, "scored": len(errors)})
        engine.deepspeed.destroy()
    if context.is_main:
        torch.save(found, out)
