"""Brain segmentation by a vision transformer, with and without pretraining, and adaptive patches of the relief."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ds4sci.data.images.quadtree import Quadtree, adaptive_patches, uniform_mse
from ds4sci.data.images.reading import read_image
from ds4sci.datasets import store

ROOT = Path(__file__).resolve().parents[2]
UNIFORM, LARGEST, SMALLEST = 4, 64, 1
"""Edge of the equal patches; edges of the largest and the smallest adaptive patches, in points of 5 arc minutes."""
DETAIL = (700, 3420, 128)
"""First row and column, and edge, of the part of the relief that is drawn with its patches."""


def ds4sci(*arguments: str) -> None:
    """Run a command of ds4sci in the root of the repository; stop if it fails."""
    print("ds4sci", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ds4sci", *arguments], cwd=ROOT, check=True)


def brain(data: Path, out: Path, steps: int, ranks: int) -> dict[str, dict[str, float]]:
    """Train from new weights and after pretraining; return the held-out metrics of both and of the thresholds."""
    schedule = json.loads((ROOT / "configs/deepspeed/cpu_image.json").read_text())
    schedule["scheduler"]["params"] |= {"total_num_steps": steps, "warmup_num_steps": max(1, steps // 10)}
    (out / "deepspeed.json").write_text(json.dumps(schedule, indent=1))
    common = [
        "--ranks", str(ranks), f"deepspeed={out / 'deepspeed.json'}", f"data.path={data}", f"train.steps={steps}",
        f"train.output={out / 'runs'}", f"train.evaluate_every={max(1, steps // 4)}",
    ]  # fmt: skip
    ds4sci("train", "configs/image/brain_pretraining.toml", *common, "train.name=pretraining")
    ds4sci("export", "--run", str(out / "runs/pretraining"), str(out / "encoder"))
    segmentation = "configs/image/brain_segmentation.toml"
    ds4sci("train", segmentation, *common, "train.name=new")
    ds4sci("train", segmentation, *common, "train.name=pretrained", f"model.path={out / 'encoder'}", "model.config={}")
    found = {}
    for name in ("new", "pretrained"):
        ds4sci("eval", "--run", str(out / "runs" / name), "--json", str(out / f"{name}.json"))
        scores = json.loads((out / f"{name}.json").read_text())
        found[name] = scores["mean"]
        found |= scores["baselines"]
    return found


def relief(file: Path, out: Path) -> dict[str, float]:
    """Compare equal and adaptive patches of equal error; draw the adaptive ones. Return their numbers of tokens.

    The error is the mean over the area of the sphere. The grid is padded to multiples of the largest patch.
    """
    image = read_image(file).values[0].astype(np.float64)
    latitude = np.deg2rad(np.linspace(-90, 90, len(image)))
    area = np.maximum(np.cos(latitude), np.cos(latitude[1]) / 4)[:, None]  # a row at a pole is half as wide
    missing = [(0, -n % LARGEST) for n in image.shape]
    image, area = np.pad(image, missing, mode="edge"), np.pad(area, [missing[0], (0, 0)], mode="edge")
    error = uniform_mse(image, UNIFORM, area)
    tree = adaptive_patches(image, largest=LARGEST, smallest=SMALLEST, mse=error, weight=area)
    draw(image, tree, out / "relief.png")
    equal = image.size // UNIFORM**2
    return {
        "equal patches": equal, "adaptive patches": len(tree), "fewer": round(equal / len(tree), 3),
        "error of equal patches, m": round(error**0.5, 2), "error of adaptive patches, m": round(tree.mse**0.5, 2),
    }  # fmt: skip


def draw(image: np.ndarray, tree: Quadtree, file: Path) -> None:
    """Draw the image, the edge of the patch of each point, and a part of the image with its patches."""
    edges = np.empty(image.shape)
    for (row, column), n in zip(tree.corner, tree.edge, strict=True):
        edges[row : row + n, column : column + n] = n
    row, column, size = (min(x, y) for x, y in zip(DETAIL, (*image.shape, min(image.shape)), strict=True))
    relief_range = {"cmap": "gist_earth", "vmin": -7000, "vmax": 5000, "origin": "lower", "interpolation": "nearest"}
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(13, 6.4), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(7, 6))
        top, bottom = left.subplots(2, 1)
        top.imshow(image[::4, ::4], **relief_range)
        top.set_title(f"relief, {image.shape[0]:,} × {image.shape[1]:,} points of 5 arc minutes", loc="left")
        shown = bottom.imshow(
            np.log2(edges[::2, ::2]), cmap="viridis", origin="lower", interpolation="nearest", vmin=0,
            vmax=np.log2(LARGEST),
        )  # fmt: skip
        bottom.set_title(f"edge of each of {len(tree):,} adaptive patches", loc="left")
        bar = left.colorbar(shown, ax=bottom, ticks=range(int(np.log2(LARGEST)) + 1))
        bar.ax.set_yticklabels([str(2**i) for i in range(int(np.log2(LARGEST)) + 1)])
        axis = right.subplots()
        axis.imshow(image, **relief_range)
        inside = (tree.corner[:, 0] < row + size) & (tree.corner[:, 0] + tree.edge > row)
        inside &= (tree.corner[:, 1] < column + size) & (tree.corner[:, 1] + tree.edge > column)
        boxes = [
            Rectangle((x - 0.5, y - 0.5), n, n)
            for (y, x), n in zip(tree.corner[inside], tree.edge[inside], strict=True)
        ]
        axis.add_collection(PatchCollection(boxes, facecolor="none", edgecolor="white", linewidth=0.4))
        axis.set_xlim(column - 0.5, min(column + size, image.shape[1]) - 0.5)
        axis.set_ylim(row - 0.5, min(row + size, image.shape[0]) - 0.5)
        axis.set_title("a part of it with its patches", loc="left")
        for one in (top, bottom, axis):
            one.set_xticks([])
            one.set_yticks([])
        figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/image_vit", help="folder for runs, scores and figures")
    parser.add_argument("--steps", type=int, default=200, help="steps of each of the three trainings")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--brain", type=Path, help="folder of the dataset brain_atlas; by default it is downloaded")
    parser.add_argument("--relief", type=Path, help="relief.npz; by default the dataset relief is downloaded")
    given = parser.parse_args()
    began, out = time.monotonic(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = given.brain or store.get("brain_atlas", log=print)
    image = given.relief or store.get("relief", log=print) / "relief.npz"
    result = {"relief": relief(image, out), "brain": brain(data, out, given.steps, given.ranks)}
    result["minutes"] = {"all": round((time.monotonic() - began) / 60, 1)}
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
