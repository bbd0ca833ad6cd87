"""The picture of ``ds4sci bench kernels``, from its JSON alone."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

from ds4sci.bench_kernels import GROWTH, OURS

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot(path: Path) -> Path:
    """Speed by case, memory and time against n, drawn beside the JSON at ``path``; the picture's path."""
    saved = json.loads(path.read_text(encoding="utf-8"))

    figure, (bars, memory, seconds) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    cases = list(dict.fromkeys((r["shape"], r["dtype"]) for r in saved["measured"]))
    for offset, backward in ((-0.2, False), (0.2, True)):
        ratios = []
        for case in cases:
            group = [r for r in saved["measured"] if (r["shape"], r["dtype"]) == case and r["backward"] == backward]
            named = {r["implementation"]: r["seconds"] for r in group}
            ours = next(named[name] for name in OURS if name in named)
            ratios.append(min(s for name, s in named.items() if name not in OURS) / ours)
        places = [i + offset for i in range(len(cases))]
        bars.barh(places, ratios, 0.38, label="forward + backward" if backward else "forward")
    bars.axvline(1.0, color="black", linewidth=0.8)
    bars.set_yticks(
        range(len(cases)), [f"{name}, {dtype.replace('float', 'fp').replace('bfp', 'bf')}" for name, dtype in cases]
    )
    bars.invert_yaxis()
    bars.set_xlabel("times as fast as the fastest torch alternative")
    bars.legend(loc="upper right")
    for name in dict.fromkeys(r["implementation"] for r in saved["growth"]):
        mine = [r for r in saved["growth"] if r["implementation"] == name]
        style = {"linewidth": 2.5} if name in OURS else {"linewidth": 1.2, "linestyle": "--"}
        lengths = [r["n"] for r in mine]
        if all(r["memory_mb"] is not None for r in mine):
            memory.loglog(lengths, [r["memory_mb"] for r in mine], marker="o", label=name, **style)
        seconds.loglog(lengths, [r["seconds"] for r in mine], marker="o", label=name, **style)
    least = {r["n"]: r["mandatory_mb"] for r in saved["growth"]}
    memory.loglog(list(least), list(least.values()), color="grey", linewidth=1, label="outputs and gradients alone")
    for axis, what in ((memory, "MB over the inputs"), (seconds, "seconds")):
        axis.set_xticks(GROWTH, [str(n) for n in GROWTH])
        axis.minorticks_off()
        axis.set_xlabel("n (16 rows, 8 heads, 32 channels, fp32)")
        axis.set_ylabel(f"{what}, forward + backward")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return picture
