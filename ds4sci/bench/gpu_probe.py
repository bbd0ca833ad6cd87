"""Measurements of ``ds4sci bench gpu_check`` that run in a process of their own: ``python -m ds4sci.bench.gpu_probe
NAME OUT``.

Each writes one JSON file. With ``--dry-run`` it runs on the CPU at its smallest size, which proves the program and
measures nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ds4sci.bench.measurement import Measurement, synchronize, timed, write
from ds4sci.kernels import machine_peak
from ds4sci.train.distributed import free_port

DTYPES = (torch.float32, torch.bfloat16)
COPY_BYTES = 2 << 30
"""Bytes of the array whose copy measures the bandwidth."""


def device_of(dry_run: bool) -> torch.device:
    """Return the GPU, or with ``dry_run`` the CPU. Raises ValueError if torch sees no GPU."""
    if dry_run:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU (torch.cuda.is_available()): install a build of torch for it, or --dry-run")
    return torch.device("cuda")


def limits(out: Path, dry_run: bool) -> None:
    """The GPU, its rates (matrix products, copies of memory), and a collective of NCCL on one rank."""
    device = device_of(dry_run)
    figures: dict[str, Any] = {"device": str(device), "torch": torch.__version__, "cuda": torch.version.cuda}
    figures["hip"], figures["nccl"] = torch.version.hip, None
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        figures |= {
            "name": seen.name, "capability": f"{seen.major}.{seen.minor}", "memory_gb": seen.total_memory / 1e9,
            "multiprocessors": seen.multi_processor_count, "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }  # fmt: skip
    rates = {}
    for dtype in DTYPES:
        rates[str(dtype).removeprefix("torch.")] = (
            machine_peak.gemm_rate(dtype, 256) if dry_run else machine_peak.peak_rate(device, dtype)
        )
    figures["flops"] = rates
    source = torch.empty(COPY_BYTES // (1024 if dry_run else 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    figures["bytes_per_second"] = 2 * source.nbytes / min(timed(lambda: target.copy_(source)) for _ in range(6))
    dist.init_process_group(
        "gloo" if dry_run else "nccl", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1
    )
    x = torch.full((1024,), 3.0, device=device)
    dist.all_reduce(x)
    synchronize()
    figures["all_reduce"] = bool((x == 3.0).all())
    dist.destroy_process_group()
    if not figures["all_reduce"]:
        raise RuntimeError("an all-reduce on one rank changed its input")
    shown = [f"{name} products: {rate / 1e12:.4g} TFLOP/s" for name, rate in rates.items() if rate]
    rows = [[key, str(value)] for key, value in figures.items() if not isinstance(value, dict)]
    write(out, asdict(_measurement(out, "Environment and limits", ["", "value"], rows, shown)) | {"limits": figures})


def language_model(out: Path, dry_run: bool) -> None:
    """A training step of a causal language model in bf16: 8,192 tokens, and 131,072 with its layers' inputs on the
    host. Plain torch: forward, loss, backward, AdamW."""
    from ds4sci.bench.lm_training import ds4sci_batch
    from ds4sci.models import language
    from ds4sci.nn.activation_budget import set_budget

    device = device_of(dry_run)
    width, layers = (64, 2) if dry_run else (1024, 8)
    config = {
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 256), "intermediate_size": 3 * width, "max_position_embeddings": 2**20,
    }  # fmt: skip
    rows = []
    for tokens, offload in ((256, False), (512, True)) if dry_run else ((8192, False), (131072, True)):
        settings = language.Config(config=config, offload=offload)
        model = language.build(settings, "causal_lm", vocabulary=256, special={"pad_token_id": 0})
        model = model.to(device, torch.bfloat16).train()
        if offload:
            set_budget(model, 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        batch = ds4sci_batch("causal_lm", tokens, None).to(device)

        def step(model: Any = model, optimizer: torch.optim.Optimizer = optimizer, batch: Any = batch) -> torch.Tensor:
            loss: torch.Tensor = model(batch).losses.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        first = time.perf_counter()
        loss = float(step())
        first = time.perf_counter() - first
        if not math.isfinite(loss):
            raise RuntimeError(f"the loss of {tokens} tokens is {loss}")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = min(timed(step) for _ in range(2 if tokens > 10**5 else 4))
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
        rate = model.flops(batch.doc_spans) / seconds / 1e12
        rows.append([tokens, "on the host" if offload else "kept", seconds, tokens / seconds, rate, peak, first])
        del model, optimizer
    columns = ["tokens", "activations", "seconds", "tokens/s", "TFLOP/s", "peak memory (GB)", "first step (s)"]
    notes = [
        f"Llama layers, {layers} of width {width}, bf16; TFLOP/s: 6 N T + attention, without recomputation (docs/"
        "scaling.md); with inputs of layers on the host, every layer is computed again"
    ]
    write(out, asdict(_measurement(out, "Language model, training step", columns, rows, notes)))


def attention(out: Path, dry_run: bool) -> None:
    """Evoformer attention, the shapes of MSA rows and of triangles, beside every installed baseline."""
    from ds4sci.bench import evoformer_attention

    cases = () if dry_run else ("MSA row", "triangle", "triangle, 512")
    evoformer_attention.run(str(device_of(dry_run)), quick=dry_run, out=out, cases=cases, rounds=5)


def packed_attention(out: Path, dry_run: bool) -> None:
    """Attention within packed documents, beside torch's SDPA."""
    from ds4sci.bench import varlen_attention

    varlen_attention.run(str(device_of(dry_run)), quick=dry_run, out=out, rounds=5)


def operations(out: Path, dry_run: bool) -> None:
    """The operations of an Evoformer block, beside plain torch."""
    from ds4sci.bench import kernels

    kernels.run("all", str(device_of(dry_run)), quick=dry_run, out=out, rounds=5)


def block(out: Path, dry_run: bool) -> None:
    """One Evoformer block at 256 residues, beside plain, checkpointed and compiled torch."""
    from ds4sci.bench import evoformer_block

    evoformer_block.run(str(device_of(dry_run)), quick=dry_run, out=out, lengths=(256,), grows=False)


def fold(out: Path, dry_run: bool) -> None:
    """A training step of a structure model: AlphaFold 2's sizes, crops of 256 and 384."""
    from ds4sci.bench import fold_step

    config, crops = ("configs/fold/tiny_cpu.toml", [32]) if dry_run else ("configs/fold/af2_initial.toml", [256, 384])
    write(out, asdict(fold_step.measure(config, [], crops, repeats=2)))


def _measurement(out: Path, title: str, columns: list[str], rows: list[list[Any]], notes: list[str]) -> Measurement:
    return Measurement(out.stem, title, "bash launch/gpu_check.sh OUT", columns, rows, notes)


PROBES: dict[str, Callable[[Path, bool], None]] = {
    "limits": limits, "attention": attention, "packed_attention": packed_attention, "operations": operations,
    "block": block, "fold": fold, "language_model": language_model,
}  # fmt: skip
"""Name → function (JSON file to write, dry run)."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PROBES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    PROBES[given.name](given.out, given.dry_run)
