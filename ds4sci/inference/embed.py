"""Embeddings of sequences by a trained language model, each sequence whole, spread over ranks where it is long.

``ds4sci embed``: the last hidden states of every token, with the residues that it stands for; or a mean per sequence.
"""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from ds4sci.data.language.batches import as_batch
from ds4sci.data.language.targets import count_new_residues
from ds4sci.data.language.windows import NO_TOKEN
from ds4sci.files.atomic_files import new_folder, refuse_full, replace_text
from ds4sci.inference import evaluate_language
from ds4sci.inference.record_errors import naming
from ds4sci.machine.processor import usable_cores
from ds4sci.tasks.language_modeling import LanguageTask, multiple
from ds4sci.train.distributed import free_port

INDEX = "index.json"


def embed(
    run: Path | str, fasta: Path | str, out: Path | str, *, which: str = "best", ranks: int = 1, mean: bool = False
) -> int:
    """Write embeddings of the sequences in ``fasta`` into the new folder ``out``; how many there are.

    Each sequence is one document, however long: with ``ranks`` > 1 its tokens are spread over them (Ulysses), which
    divides time and memory. ``out`` gets ``index.json`` (name → file; model, step) and for each sequence
    ``NNNNNN.safetensors`` with ``embedding`` fp32 [tokens, c], ``start`` and ``size`` int64 [tokens]: first residue
    (0-based) and number of residues of each token; special tokens are left out. With ``mean`` there is one file, whose
    ``embedding`` [sequences, c] are the means over tokens, in the order of the index. The index counts residues
    ``given``, ``read`` (in a token; ``unknown`` of them in ``<unk>``) and ``left_out`` by reason. The folder appears
    whole or not at all.

    A record without a known token is an error that names it; where the run's ``data.on_bad_record`` is ``skip`` it is
    left out, and its name is in ``silent``. Raises ValueError for a run of another kind, a file that cannot be read, a
    folder that is not empty, and a sequence longer than the model has positions for.
    """
    run, fasta, out = Path(run), Path(fasta), Path(out)
    refuse_full(out)
    evaluate_language.load(run, which)  # what is wrong with it is said here, before ranks start
    with new_folder(out) as aside, ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        arguments = (str(run), str(fasta), str(aside), which, mean, ranks)
        port = free_port()
        waiting = [pool.submit(_rank, rank, port, *arguments) for rank in range(ranks)]
        return max(one.result() for one in waiting)


def _rank(rank: int, port: int, run: str, fasta: str, out: str, which: str, mean: bool, ranks: int) -> int:
    from ds4sci.train import engine

    engine.silence_deepspeed()
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    joined = engine.init_distributed({}, ranks)
    try:
        _, task, step = evaluate_language.load(Path(run), which)
        task.model.to(joined.device).eval()
        task.set_parallel_groups(joined.sequence)
        return _write(task, Path(fasta), Path(out), mean, {"run": run, "checkpoint": which, "step": step})
    finally:
        dist.destroy_process_group()


def _without_token(task: LanguageTask, where: str, length: int) -> None:
    """Raise ValueError for a record with nothing to embed, unless the run's ``data.on_bad_record`` is to leave such
    ones out."""
    if task.config.data.on_bad_record == "error":
        raise ValueError(
            f"{where}: its {length} residues are in no token that this run's tokenizer knows, so it has no embedding; "
            'remove it, or leave such records out with data.on_bad_record = "skip"'
        )


@torch.no_grad()
def _write(task: LanguageTask, fasta: Path, out: Path, mean: bool, facts: dict[str, object]) -> int:
    group = task.group
    files: dict[str, str | int] = {}
    means: list[torch.Tensor] = []
    silent: list[str] = []
    given = read = unknown = 0
    with tempfile.TemporaryDirectory() as folder:
        store = evaluate_language.store_of(task, fasta, Path(folder))
        for record in range(len(store)):
            letters = np.array(store.residues(record))
            name = store.name(record)
            with naming(store.location(record), len(letters), "leave it out, or spread it over more ranks (--ranks)"):
                hidden, start, size, strange = _embedding(task, letters, name)
            fresh = count_new_residues(start, size, strange)
            given, read, unknown = given + len(letters), read + int(fresh.sum()), unknown + int(fresh[strange].sum())
            if strange.all():
                _without_token(task, store.location(record), len(letters))
                silent.append(name)
            elif mean:
                files[name] = len(means)
                means.append(hidden.mean(0))
            elif group.rank == 0:
                file = f"{record:06d}.safetensors"
                tensors = {"embedding": hidden, "start": torch.from_numpy(start), "size": torch.from_numpy(size)}
                save_file(tensors, out / file)
                files[name] = file
    if len(silent) == len(store):
        raise ValueError(f"{fasta}: none of its {len(store)} records has a token: {', '.join(silent[:3])}")
    if group.rank == 0:
        if mean:
            save_file({"embedding": torch.stack(means)}, out / "means.safetensors")
        told: dict[str, object] = {
            "given": given,
            "read": read,
            "left_out": {NO_TOKEN: given - read} if given > read else {},
        }
        told |= {"unknown": unknown, "silent": silent, "sequences": files}
        replace_text(out / INDEX, json.dumps(facts | told, indent=1) + "\n")
    return len(store) - len(silent)


def _embedding(
    task: LanguageTask, letters: np.ndarray, name: str
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """fp32 [tokens, c] on the CPU, whole on every rank; each token's first residue, residues, and whether it is
    ``<unk>``. Where all are, nothing is computed."""
    ids, place, size = task.tokenizer.encode(letters)
    real = np.flatnonzero(size)
    strange = task.tokenizer.is_unknown(ids[real])
    if strange.all():
        return torch.zeros(0), place[real], size[real], strange
    n = -(-len(ids) // multiple(task.group)) * multiple(task.group)
    batch = as_batch([ids], n, task.tokenizer.pad_id, name, rope_factor=task.rope_factor)
    own = task.language.hidden(batch.to(next(task.model.parameters()).device)).float()
    if task.group.size > 1:
        parts = [torch.empty_like(own) for _ in range(task.group.size)]
        dist.all_gather(parts, own.contiguous(), group=task.group.handle)
        own = torch.cat(parts, dim=1)
    return own[0, : len(ids)].cpu()[real].contiguous(), place[real], size[real], strange
