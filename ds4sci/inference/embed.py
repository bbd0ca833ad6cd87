"""Embeddings of sequences by a trained run: one document per sequence, split over ranks.

``ds4sci embed`` writes the last hidden state of every token with the residues that the token covers, or one mean per
sequence.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ds4sci.data.language.targets import count_new_residues
from ds4sci.data.language.windows import NO_TOKEN
from ds4sci.files.atomic_files import new_folder, refuse_full, replace_text
from ds4sci.inference.ranks import run_ranks
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine.memory_errors import name_memory_errors
from ds4sci.nn.quantized_weights import Format
from ds4sci.tasks import SequenceEmbedder
from ds4sci.tasks.build import default_kernels
from ds4sci.train.distributed import DistributedContext

INDEX = "index.json"


def embed(
    run: Path | str, fasta: Path | str, out: Path | str, *, which: str = "best", ranks: int = 1, mean: bool = False,
    quantize: Format | None = None,
) -> int:  # fmt: skip
    """Write embeddings of the sequences in ``fasta`` into the new folder ``out``; return their number.

    Each sequence is one document, of any length. With ``ranks`` > 1, its tokens are split over the ranks (Ulysses),
    which divides time and memory. ``out`` gets ``index.json`` and, for each sequence, ``NNNNNN.safetensors`` with
    ``embedding`` fp32 [tokens, c], ``start`` and ``size`` int64 [tokens]: first residue (0-based) and number of
    residues of each token; special tokens are omitted. With ``mean`` there is one file, ``means.safetensors``, whose
    ``embedding`` [sequences, c] holds the means over tokens, in the order of the index. The folder appears complete or
    not at all. ``quantize``: weights in ``int8`` or ``nf4``; see ``TrainedRun.load``.

    The index has ``run``, ``checkpoint``, ``step``; ``sequences`` (name → file, or row of the means); the numbers of
    residues ``total_residues`` (in the file), ``tokenized_residues`` (in a token) and ``unknown`` (of these, in
    ``<unk>``); ``excluded`` (reason → residues); and ``untokenized_records``.

    A record without a known token is an error that names it. If the run has ``data.on_bad_record = "skip"``, the record
    is skipped and listed in ``untokenized_records``. Raises ValueError for a task without embeddings, an unreadable
    file, a folder that is not empty, and a sequence longer than the model has positions for.
    """
    run, fasta, out = Path(run), Path(fasta), Path(out)
    refuse_full(out)
    _load(run, which, quantize)  # report errors before the ranks start
    with new_folder(out) as temporary:
        return max(run_ranks(_rank, ranks, run, fasta, temporary, which, mean, quantize, sequence=ranks))


def _load(run: Path, which: str, quantize: Format | None) -> tuple[TrainedRun, SequenceEmbedder]:
    loaded = TrainedRun.load(run, which, quantize=quantize)
    if not isinstance(loaded.task, SequenceEmbedder):
        raise loaded.lacks("embed sequences", "the methods `embed`, `open_sequences` and `set_parallel_groups`")
    return loaded, loaded.task


def _rank(
    context: DistributedContext, run: Path, fasta: Path, out: Path, which: str, mean: bool, quantize: Format | None
) -> int:
    """Embed this rank's part of each sequence."""
    loaded, task = _load(run, which, quantize)
    task.model.to(context.device).eval()
    task.set_parallel_groups(context.sequence)
    facts = {"run": str(run), "checkpoint": which, "step": loaded.step, "quantize": quantize}
    with default_kernels(loaded.config):
        return _write(task, fasta, out, mean, facts, is_writer=context.sequence.rank == 0)


@torch.no_grad()
def _write(
    task: SequenceEmbedder, fasta: Path, out: Path, mean: bool, facts: dict[str, object], *, is_writer: bool
) -> int:
    """Embed every record and write the files on the writer's rank; return the number of embeddings."""
    files: dict[str, str | int] = {}
    means: list[torch.Tensor] = []
    untokenized: list[str] = []
    total = tokenized = unknown = 0
    with tempfile.TemporaryDirectory() as folder:
        store = task.open_sequences(fasta, Path(folder))
        for record in range(len(store)):
            letters = np.array(store.residues(record))
            name, where = store.name(record), store.location(record)
            with name_memory_errors(where, len(letters), "remove it, or split it over more ranks (--ranks)"):
                one = task.embed(letters, name)
            first = count_new_residues(one.start, one.size, one.unknown)
            total, tokenized = total + len(letters), tokenized + int(first.sum())
            unknown += int(first[one.unknown].sum())
            if one.unknown.all():
                if not task.skips_unreadable:
                    raise ValueError(
                        f"{where}: its {len(letters)} residues are in no token that this run's tokenizer knows, so it "
                        'has no embedding; remove it, or skip such records with data.on_bad_record = "skip"'
                    )
                untokenized.append(name)
            elif mean:
                files[name] = len(means)
                means.append(one.hidden.mean(0))
            elif is_writer:
                file = f"{record:06d}.safetensors"
                arrays = {"start": torch.from_numpy(one.start), "size": torch.from_numpy(one.size)}
                save_file({"embedding": one.hidden} | arrays, out / file)
                files[name] = file
    if len(untokenized) == len(store):
        raise ValueError(f"{fasta}: none of its {len(store)} records has a token: {', '.join(untokenized[:3])}")
    if is_writer:
        if mean:
            save_file({"embedding": torch.stack(means)}, out / "means.safetensors")
        index = facts | {
            "total_residues": total,
            "tokenized_residues": tokenized,
            "excluded": {NO_TOKEN: total - tokenized} if total > tokenized else {},
            "unknown": unknown,
            "untokenized_records": untokenized,
            "sequences": files,
        }
        replace_text(out / INDEX, json.dumps(index, indent=1) + "\n")
    return len(store) - len(untokenized)
