"""Export of a trained model to the format that other programs read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ds4sci.files.atomic_files import new_folder, refuse_full
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine import provenance
from ds4sci.models.huggingface.quantized_folder import Sizes, quantize_folder
from ds4sci.models.published_weights.weight_file import read_record
from ds4sci.nn.quantized_weights import Format
from ds4sci.tasks import Exportable
from ds4sci.train import checkpoint


def export_run(
    run: Path | str, out: Path | str, *, which: str = "best", adapter: bool = False, quantize: Format | None = None
) -> Path:
    """Write the weights of a checkpoint (EMA, fp32) into the new folder ``out``; return it.

    The task determines the format (``ds4sci.tasks.Exportable``). Language models become a Hugging Face folder, which
    ``AutoModel….from_pretrained(out)`` and ``AutoTokenizer.from_pretrained(out)`` read without ds4sci: adapters are
    merged into the weights, or, with ``adapter``, written without them, with the name of their base model and their
    task, as ``peft.AutoPeftModel…`` reads them. With ``quantize`` (``int8``, ``nf4``) the linear layers of a
    transformers model get compressed weights (``ds4sci.models.huggingface.quantized_folder``). Structure models become
    a checkpoint of OpenFold. ``ds4sci.json`` names the run, the checkpoint and the commit; ``notice.txt`` has the
    license of published weights that the run started from. The folder appears complete or not at all.

    Raises ValueError for a run or checkpoint that does not exist, a task without export, ``adapter`` on a run without
    adapters or with new base weights, ``quantize`` with ``adapter`` or on a model that is none of transformers, and a
    folder that is not empty.
    """
    run, out = Path(run), Path(out)
    refuse_full(out)
    if quantize is not None and adapter:
        raise ValueError("--quantize and --adapter cannot be combined: adapters are small, and are trained further")
    loaded = TrainedRun.load(run, which)
    task = loaded.task
    if not isinstance(task, Exportable):
        raise loaded.lacks("be exported", "the method `export`")
    task.model.cpu()
    folder = checkpoint.select_checkpoint(run, which)
    started_with = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with new_folder(out) as temporary:
        task.export(temporary, adapter=adapter, started_with=started_with)
        origin: dict[str, Any] = {"run": run.name, "checkpoint": folder.name, "commit": provenance.commit()}
        if notice := read_record(run).get("notice"):
            origin["notice"] = notice
            (temporary / "notice.txt").write_text(notice + "\n", encoding="utf-8")
        if quantize is not None:
            sizes = _quantize_in_place(temporary, quantize)
            origin |= {"quantize": quantize, "weight_bytes": sizes.after, "weight_bytes_uncompressed": sizes.before}
        (temporary / "ds4sci.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    return out


def _quantize_in_place(folder: Path, quantize: Format) -> Sizes:
    """Replace the weights in ``folder`` by compressed ones; its other files stay."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        compressed = Path(name)
        sizes = quantize_folder(folder, compressed, quantize)
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        for file in compressed.iterdir():
            file.replace(folder / file.name)
    return sizes


def list_files(folder: Path) -> list[tuple[str, int]]:
    """Return names and sizes in bytes of the files in ``folder``."""
    return [(file.name, file.stat().st_size) for file in sorted(folder.iterdir())]
