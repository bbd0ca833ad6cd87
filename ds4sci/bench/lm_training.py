"""Training steps of one language model, by Hugging Face's ``Trainer`` and by ds4sci.

Both train the same model (4 layers, width 256, 8 heads) on the same rows, with AdamW: ``causal_lm`` with one
document per row, ``masked_lm`` with the last quarter of the row padded. In bf16, each in its own way: ``Trainer`` casts
in torch's autocast, and DeepSpeed keeps weights in bf16 and their fp32 copies in the optimizer.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ds4sci.bench.memory import peak_bytes

KINDS = ("causal_lm", "masked_lm")
LAYERS, WIDTH, HEADS, HIDDEN = 4, 256, 8, 1024


def hf_model(kind: str, key_heads: int = HEADS) -> Any:
    """The model with random weights. Every call returns the same weights. ``key_heads``: of the causal model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    if kind == "causal_lm":
        config = AutoConfig.for_model(
            "llama", **shape, num_key_value_heads=key_heads, intermediate_size=HIDDEN, vocab_size=16,
            max_position_embeddings=2**20, use_cache=False,
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config)
    config = AutoConfig.for_model(
        "esm", **shape, intermediate_size=HIDDEN, vocab_size=33, pad_token_id=1, mask_token_id=32, token_dropout=True,
        position_embedding_type="rotary", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        emb_layer_norm_before=False, max_position_embeddings=1026,
    )  # fmt: skip
    return AutoModelForMaskedLM.from_config(config)


def example(kind: str, n: int) -> dict[str, Any]:
    """input_ids, labels (not shifted, as ``Trainer`` expects) and attention_mask of one row, int64 [n]."""
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 8 if kind == "causal_lm" else 24, (n,), generator=generator)
    if kind == "causal_lm":
        return {"input_ids": tokens, "labels": tokens.clone()}
    real = torch.arange(n) < n * 3 // 4
    chosen = (torch.rand(n, generator=generator) < 0.15) & real
    given = torch.where(chosen, 32, tokens).masked_fill(~real, 1)
    return {"input_ids": given, "labels": torch.where(chosen, tokens, -100), "attention_mask": real.long()}


def trainer_steps(
    kind: str, n: int, checkpointed: bool, steps: int, *, bf16: bool = False, key_heads: int = HEADS
) -> tuple[list[float], int]:
    """Seconds of the steps after the first, and peak memory of the process in bytes, with ``transformers.Trainer``."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    start, times = [0.0], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **named: Any) -> None:
            start[0] = time.perf_counter()

        def on_step_end(self, *args: Any, **named: Any) -> None:
            times.append(time.perf_counter() - start[0])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=1, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, optim="adamw_torch", learning_rate=1e-4,
            gradient_checkpointing=checkpointed, bf16=bf16,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointed else None,
        )  # fmt: skip
        Trainer(
            model=hf_model(kind, key_heads),
            args=arguments,
            train_dataset=[example(kind, n)] * steps,
            callbacks=[Clock()],
        ).train()
    return times[1:] or times, peak_bytes() or 0


def ds4sci_steps(
    kind: str, n: int, steps: int, document: int | None = None, *, sequence: int = 1,
    activation_budget: float | None = None, chunk_tokens: int | None = None, bf16: bool = False,
    key_heads: int = HEADS, step_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[list[float], int]:  # fmt: skip
    """The same figures with ds4sci's engine: DeepSpeed, ZeRO 0, on the ranks that the environment variables define.
    Each step runs in a ``step_context``."""
    import torch

    from ds4sci.losses.language import weighted_mean
    from ds4sci.models import language
    from ds4sci.nn.activation_budget import set_budget
    from ds4sci.train import engine as engines
    from ds4sci.train.distributed import set_rank_environment

    set_rank_environment()
    engines.silence_deepspeed()
    optimizer = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}
    settings: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "optimizer": optimizer, "gradient_clipping": 1.0}
    if bf16:
        settings["bf16"] = {"enabled": True}
    context = engines.init_distributed(settings, sequence)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ds.json"
        file.write_text(json.dumps(settings), encoding="utf-8")
        own = language.Config(config={"model_type": "llama"}, chunk_tokens=chunk_tokens)
        model = language.LanguageModel(hf_model(kind, key_heads), own, kind)  # type: ignore[arg-type]
        model.group = context.sequence
        if activation_budget is not None:
            set_budget(model, activation_budget)
        engine = engines.Engine(model, file, context)
    engine.module.train()
    batch = ds4sci_batch(kind, n, document)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        with step_context():
            loss = weighted_mean(engine.deepspeed(batch), batch)
            engine.backward(loss, 1 / context.sequence.data_size)
            engine.step()
        times.append(time.perf_counter() - start)
    assert torch.isfinite(loss)
    peak = max(context.gather(peak_bytes() or 0))
    torch.distributed.destroy_process_group()
    return times[1:] or times, peak


def ds4sci_batch(kind: str, n: int, document: int | None) -> Any:
    """``example`` as a batch of ds4sci. ``document``: number of tokens per document; by default one document."""
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
        ids=("synthetic",), input_ids=row["input_ids"][None], labels=labels[None],
        weights=(labels >= 0).float()[None], position_ids=positions[None], doc_spans=spans,
        soft_masked=torch.zeros(1, n, dtype=torch.bool), tokens=real,
    )  # fmt: skip
