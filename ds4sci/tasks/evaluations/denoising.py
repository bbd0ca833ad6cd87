"""Evaluation of denoising, beside non-local means."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ds4sci.baselines.non_local_means import expected_counts, mean_square, repair
from ds4sci.metrics.images import psnr
from ds4sci.tasks.array_task import ArrayExample, collate
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.evaluations.comparison import ComparisonFigure, comparison_result, first_middle_last

if TYPE_CHECKING:
    from ds4sci.tasks.denoising import Denoising

NETWORK, NLM, REPAIRED, NOISY = "network", "non-local means", "counts, defective pixels repaired", "counts"


def denoising_evaluation(task: Denoising) -> Evaluation:
    """PSNR of all held-out images: of the network, of calibrated non-local means, and of the counts.

    The result has ``mean`` (metrics of the network), ``baselines`` (name → PSNR in dB), ``strength`` of the filter,
    ``rows`` (errors of each image), and ``comparison`` and ``figures`` for the report. The attachment ``.png`` shows
    the images of highest, median and lowest gain.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        with torch.no_grad():
            rows = task.evaluate(task.model.eval(), rank=0, world_size=1, device=request.device)
        mean = task.summarize(rows)
        baselines = {NLM: mean["psnr_nlm_db"]}
        for name, change in ((REPAIRED, repair), (NOISY, np.asarray)):
            values = []
            for row, (counts, clean) in zip(rows, task.valid[: len(rows)], strict=True):
                given = change(counts[0]) / expected_counts(counts[0])
                values.append(psnr(mean_square(given, clean[0]), row["range"]))
            baselines[name] = float(np.mean(values))
        order = np.argsort([row["mse"] / row["mse_nlm"] for row in rows])
        chosen = first_middle_last(order)
        from ds4sci.tasks.evaluations import denoising_figures as draw

        images = _images(task, chosen, request.device)
        found = {NETWORK: mean["psnr_db"]} | baselines
        names = ", ".join(rows[i]["id"] for i in chosen)
        return comparison_result(
            {"mean": mean, "baselines": baselines, "strength": task.baseline.strength},
            rows,
            header=["", "PSNR, dB", "gain over non-local means, dB"],
            table=[[name, f"{own:.2f}", f"{own - mean['psnr_nlm_db']:+.2f}"] for name, own in found.items()],
            title=f"{len(rows)} held-out images",
            figures=[
                ComparisonFigure(
                    "images", "Held-out images: highest, median and lowest gain",
                    f"Counts, non-local means, network and clean image of {names}",
                    partial(draw.save_images, images, [rows[i] for i in chosen]),
                )
            ],
        )  # fmt: skip

    return Evaluation(run)


def _images(task: Denoising, numbers: list[int], device: torch.device) -> list[dict[str, np.ndarray]]:
    """Relative intensities of each image by method, in the order in which they are drawn."""
    batch = collate([ArrayExample(str(i), *task.valid[i]) for i in numbers]).to(device)
    with torch.no_grad():
        predicted = task.intensity(task.model(batch))
    images = []
    for own, (counts, clean) in zip(predicted, (task.valid[i] for i in numbers), strict=True):
        noisy = counts[0] / expected_counts(counts[0])
        images.append({"counts": noisy, NLM: task.baseline(counts[0]), NETWORK: own, "clean": clean[0]})
    return images
