"""``ds4sci bench lm``: a training step of a language model by Hugging Face's ``Trainer`` and by ds4sci, side by side.

The same model (4 layers, 256 wide, 8 heads), the same rows, one process, fp32, AdamW: causal, one document a row;
masked, with the last quarter of the row padding. Each way runs in processes of its own, A B C A B C, so that peaks are
its own.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ds4sci.bench.measurement import Measurement, keep_within, peak_bytes, spread, write
from ds4sci.machine.processor import usable_cores
from ds4sci.train.distributed import free_port

LENGTHS = (2048, 4096, 8192, 16384, 32768)
KINDS = ("causal_lm", "masked_lm")
WAYS = ("Trainer", "Trainer, checkpointed", "ds4sci")
LAYERS, WIDTH, HEADS, HIDDEN = 4, 256, 8, 1024
LIMIT = 8e9
"""Bytes that a process may hold in the search for the longest sequence."""
DOCUMENT = 1024
"""Tokens of the documents that ds4sci's rows are made of in that search; a test compares with one whole document."""
COLUMNS = ["model", "tokens", "way", "seconds", "spread", "peak MB", "times as fast as Trainer", "times leaner"]
LONGEST = ["model", "way", "longest in 8 GB", "times Trainer's"]


def hf_model(kind: str) -> Any:
    """The model with random weights, the same at every call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    if kind == "causal_lm":
        config = AutoConfig.for_model(
            "llama", **shape, intermediate_size=HIDDEN, vocab_size=16, max_position_embeddings=2**20, use_cache=False
        )
        return AutoModelForCausalLM.from_config(config)
    config = AutoConfig.for_model(
        "esm", **shape, intermediate_size=HIDDEN, vocab_size=33, pad_token_id=1, mask_token_id=32, token_dropout=True,
        position_embedding_type="rotary", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        emb_layer_norm_before=False, max_position_embeddings=1026,
    )  # fmt: skip
    return AutoModelForMaskedLM.from_config(config)


def example(kind: str, n: int) -> dict[str, Any]:
    """input_ids, labels (as ``Trainer`` wants them: not shifted) and attention_mask of one row, int64 [n]."""
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 8 if kind == "causal_lm" else 24, (n,), generator=generator)
    if kind == "causal_lm":
        return {"input_ids": tokens, "labels": tokens.clone()}
    real = torch.arange(n) < n * 3 // 4
    chosen = (torch.rand(n, generator=generator) < 0.15) & real
    given = torch.where(chosen, 32, tokens).masked_fill(~real, 1)
    return {"input_ids": given, "labels": torch.where(chosen, tokens, -100), "attention_mask": real.long()}


def trainer_steps(kind: str, n: int, checkpointed: bool, steps: int) -> tuple[list[float], int]:
    """Seconds of the steps after the first, and the process's peak in bytes, by ``transformers.Trainer``."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    began, took = [0.0], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **named: Any) -> None:
            began[0] = time.perf_counter()

        def on_step_end(self, *args: Any, **named: Any) -> None:
            took.append(time.perf_counter() - began[0])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=1, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, optim="adamw_torch", learning_rate=1e-4,
            gradient_checkpointing=checkpointed,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointed else None,
        )  # fmt: skip
        Trainer(
            model=hf_model(kind), args=arguments, train_dataset=[example(kind, n)] * steps, callbacks=[Clock()]
        ).train()
    return took[1:] or took, peak_bytes() or 0


def our_steps(
    kind: str, n: int, steps: int, document: int | None = None, *, sequence: int = 1, checkpoint_min_tokens: int = 8192
) -> tuple[list[float], int]:
    """The same by ds4sci's engine: DeepSpeed, ZeRO 0, on the ranks that the environment says."""
    import torch

    from ds4sci.losses.language import weighted_mean
    from ds4sci.models import language
    from ds4sci.train import engine as engines
    from ds4sci.train.distributed import set_rank_environment

    set_rank_environment()
    engines.silence_deepspeed()
    optimizer = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}
    settings = {"train_micro_batch_size_per_gpu": 1, "optimizer": optimizer, "gradient_clipping": 1.0}
    context = engines.init_distributed(settings, sequence)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ds.json"
        file.write_text(json.dumps(settings), encoding="utf-8")
        own = language.Config(config={"model_type": "llama"}, checkpoint_min_tokens=checkpoint_min_tokens)
        model = language.LanguageModel(hf_model(kind), own, kind)  # type: ignore[arg-type]
        model.group = context.sequence
        engine = engines.Engine(model, file, context)
    engine.module.train()
    batch = our_batch(kind, n, document)
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = weighted_mean(engine.deepspeed(batch), batch)
        engine.backward(loss, 1 / context.sequence.data_size)
        engine.step()
        took.append(time.perf_counter() - began)
    assert torch.isfinite(loss)
    peak = max(context.gather(peak_bytes() or 0))
    torch.distributed.destroy_process_group()
    return took[1:] or took, peak


def our_batch(kind: str, n: int, document: int | None) -> Any:
    """``example`` as a batch; ``document``: cut into documents of so many tokens."""
    import torch

    from ds4sci.types import LanguageBatch

    row = example(kind, n)
    real = n if kind == "causal_lm" else n * 3 // 4
    size = document or real
    starts = list(range(0, real, size))
    spans = torch.tensor([(start, min(start + size, real)) for start in starts])
    labels = row["labels"]
    if kind == "causal_lm":
        labels = torch.cat([row["labels"][1:], torch.tensor([-100])])
        labels[spans[:, 1] - 1] = -100
    positions = torch.arange(n) % size
    return LanguageBatch(
        ids=("made",), input_ids=row["input_ids"][None], labels=labels[None],
        weights=(labels >= 0).float()[None], position_ids=positions[None], doc_spans=spans,
        soft_masked=torch.zeros(1, n, dtype=torch.bool), tokens=real,
    )  # fmt: skip


def one(way: str, kind: str, n: int, steps: int) -> tuple[list[float], int | None]:
    """Seconds of steps and the peak of a fresh process; no seconds and None where the machine's memory did not do."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=keep_within) as pool:
        if way == "ds4sci":
            asked = pool.submit(our_steps, kind, n, steps)
        else:
            asked = pool.submit(trainer_steps, kind, n, "checkpointed" in way, steps)
        try:
            return asked.result()
        except (MemoryError, RuntimeError) as error:
            if not _is_shortage(error):
                raise
            return [], None


def _is_shortage(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def run(
    lengths: Sequence[int] = (), *, out: Path, kinds: Sequence[str] = (), quick: bool = False, longest: bool = True
) -> Measurement:
    """Every way at every length, then the longest sequence that fits; writes ``out``."""
    asked = [256] if quick else list(lengths or LENGTHS)
    asked_kinds = list(kinds or KINDS)
    rows: list[list[Any]] = []
    for n in asked:
        for kind in asked_kinds:
            rows += _ways(kind, n, quick)
            rows.sort(key=lambda row: (asked_kinds.index(row[0]), row[1]))
            measured = _measurement(kinds, lengths, rows)
            write(out, asdict(measured) | ({"plot": out.with_suffix(".png").name} if len(asked) > 1 else {}))
    if longest and not quick:
        write(out.with_name(f"{out.stem}_longest.json"), asdict(search(asked_kinds)))
    return measured


def _ways(kind: str, n: int, quick: bool) -> list[list[Any]]:
    """Rows of the table: every way on a row of ``n`` tokens."""
    rounds, steps = (1, 2) if quick else (1, 1) if n >= 16384 else (3, 4)
    found: dict[str, tuple[list[float], list[int | None]]] = {way: ([], []) for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            print(f"ds4sci: {kind}, {n} tokens, {way} …", file=sys.stderr, flush=True)
            took, peak = one(way, kind, n, steps)
            found[way][0].extend(took)
            found[way][1].append(peak)
    base: tuple[float, int] | None = None
    rows: list[list[Any]] = []
    for way, (took, peaks) in found.items():
        held = [peak for peak in peaks if peak is not None]
        if not held:
            rows.append([kind, n, way, None, "out of memory", None, None, None])
            continue
        median, peak = statistics.median(took), min(held)
        if way == WAYS[0]:
            base = median, peak
        shown = f"{spread(took):.0%}" if len(took) > 1 else None
        ratios = [base[0] / median, base[1] / peak] if base else [None, None]
        rows.append([kind, n, way, median, shown, peak / 1e6, *ratios])
    return rows


def _measurement(kinds: Sequence[str], lengths: Sequence[int], rows: list[list[Any]]) -> Measurement:
    return Measurement(
        name="lm",
        title="A training step of a language model, 4 layers, 256 wide, beside Hugging Face's Trainer",
        command="ds4sci bench lm" + "".join([*(f" --kind {k}" for k in kinds), *(f" --n {n}" for n in lengths)]),
        columns=COLUMNS,
        rows=rows,
        notes=[
            "one process, fp32, AdamW, one row; causal: Llama's layers, one document; masked: ESM's, the last quarter "
            "padding; each way in its own processes, A B C A B C; MB: all that the process held at most",
            f"medians of 9 steps after 3 first ones; from 16,384 tokens on of one step, the first; "
            f"{usable_cores()} threads",
        ],
    )


def search(kinds: Sequence[str] = KINDS) -> Measurement:
    """The longest row whose training step stays within ``LIMIT``, by each way."""
    rows = []
    for kind in kinds:
        found: dict[str, int] = {}
        for way in (*WAYS, "ds4sci, 2 ranks"):
            print(f"ds4sci: the longest {kind} row by {way} …", file=sys.stderr, flush=True)
            ranks = 2 if "2 ranks" in way else 1
            found[way] = _longest(_probe(kind, way), first=32768 * ranks)
            rows.append([kind, way, found[way], found[way] / found["Trainer"]])
    return Measurement(
        name="lm_longest",
        title="The longest row that trains in 8 GB a process, 4 layers, 256 wide",
        command="ds4sci bench lm" + "".join(f" --kind {kind}" for kind in kinds if tuple(kinds) != KINDS),
        columns=LONGEST,
        rows=rows,
        notes=[
            "found to 2 % by running steps; memory is what is measured here, not time",
            f"ds4sci's rows are documents of {DOCUMENT:,} tokens; one whole document takes the same memory (to 2 %, "
            "tests/bench/test_lm_step.py)",
            "Trainer's causal attention is replaced by one that keeps and makes the same tensors, uncomputed",
        ],
    )


def _probe(kind: str, way: str) -> Callable[[int], int]:
    """n → peak bytes of a step; more than ``LIMIT`` where it ran out of memory."""

    def peak(n: int) -> int:
        if way == "ds4sci, 2 ranks":
            return _two_ranks(kind, n)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=keep_within) as pool:
            try:
                if way == "ds4sci":
                    return pool.submit(our_steps, kind, n, 1, DOCUMENT).result()[1]
                return pool.submit(_plain_memory, kind, n, "checkpointed" in way).result()
            except (MemoryError, RuntimeError) as error:
                if not _is_shortage(error):
                    raise
                return int(4 * LIMIT)

    return peak


def _plain_memory(kind: str, n: int, checkpointed: bool) -> int:
    import torch

    if kind == "causal_lm":
        torch.nn.functional.scaled_dot_product_attention = stand_in  # type: ignore[assignment]
    return trainer_steps(kind, n, checkpointed, 1)[1]


def stand_in(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> Any:
    """What torch's fused attention keeps and makes, without its arithmetic: for measuring memory at lengths where the
    arithmetic takes hours."""
    import torch

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            out = torch.empty_like(q).copy_(v)
            lse = torch.zeros(q.shape[:-1])
            ctx.save_for_backward(q, k, v, out, lse)
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            q, k, v, _, _ = ctx.saved_tensors
            return torch.zeros_like(q), torch.zeros_like(k), torch.empty_like(v).copy_(grad)

    assert attn_mask is None
    return Same.apply(q, k, v)


def _two_ranks(kind: str, n: int) -> int:
    port = free_port()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return max(peak for peak in pool.map(_rank, *zip(*((r, port, kind, n) for r in range(2)), strict=True)))


def _rank(rank: int, port: int, kind: str, n: int) -> int:
    import os

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    return our_steps(kind, n, 1, DOCUMENT, sequence=2)[1]


def _longest(peak: Callable[[int], int], step: int = 1024, first: int = 32768) -> int:
    """The largest multiple of ``step`` whose peak is within ``LIMIT``, to 2 %.

    Three lengths say whether memory grows as a line or as a parabola; where that meets the limit is measured, and then
    what the line through the lengths on both sides of the limit says.
    """
    known: dict[int, int] = {}

    def measured(n: int) -> int:
        print(f"ds4sci:   {n:,} tokens …", end="", file=sys.stderr, flush=True)
        known[n] = peak(n)
        print(f" {known[n] / 1e9:.2f} GB", file=sys.stderr, flush=True)
        return known[n]

    while measured(first) > 0.5 * LIMIT and first > step:
        first //= 2
    a, b, c = first, first * 3 // 2, first * 2
    one, two = ((measured(y) - known[x]) / (y - x) for x, y in ((a, b), (b, c)))
    bend = (two - one) / (c - a) if two > 1.15 * one else 0.0
    slope = one - bend * (a + b) if bend else (known[c] - known[a]) / (c - a)
    rest = 0.99 * LIMIT - known[a] + slope * a + bend * a * a  # = slope·n + bend·n²
    n = rest / slope if not bend else (math.sqrt(slope * slope + 4 * bend * rest) - slope) / (2 * bend)
    for _ in range(6):
        n = int(n) // step * step
        if n in known or 0.98 * LIMIT <= measured(n) <= LIMIT:
            break
        low = max(x for x, held in known.items() if held <= LIMIT)
        high = min((x for x, held in known.items() if held > LIMIT), default=None)
        if high is None:  # the line through the last two
            low, high = sorted(known)[-2:]
        n = low + (0.99 * LIMIT - known[low]) * (high - low) / (known[high] - known[low])
    return max(x for x, held in known.items() if held <= LIMIT)
