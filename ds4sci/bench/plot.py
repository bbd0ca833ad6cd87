"""Plots of benchmark results, drawn from the JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.figure import Figure

from ds4sci.bench.evoformer_attention import GROWTH_LENGTHS, OURS
from ds4sci.bench.evoformer_block import LIMIT_MB

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LENGTHS_SHOWN = (64, 128, 256, 512, 1024)


def _short(dtype: str) -> str:
    return dtype.replace("float", "fp").replace("bfp", "bf")


def plot(path: Path) -> Path:
    """Draw the measurement at ``path`` as a PNG next to it. Returns the path of the PNG."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    named = {"lm": language_model, "zcs": derivatives, "cogsim": cogsim}
    draw = data_selection if "quality" in saved else named.get(saved.get("name"))
    draw = roofline if "ceilings" in saved else draw
    figure = draw(saved) if draw else block(saved) if "growth" in saved else attention(saved)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return picture


def cogsim(saved: dict[str, Any]) -> Figure:
    """Rows: pairs of simulation and experiment. Left: error of each method, a point per draw. Right: coverage."""
    studies = saved["studies"]
    figure, axes = plt.subplots(len(studies), 2, figsize=(11, 3.9 * len(studies)), layout="constrained", squeeze=False)
    for (pair, found), (errors, covered) in zip(studies.items(), axes, strict=True):
        methods = list(dict.fromkeys(row["method"] for row in found["draws"]))
        values = [[row["nrmse"] for row in found["draws"] if row["method"] == method] for method in methods]
        errors.boxplot(values, tick_labels=methods, widths=0.55, showfliers=False, medianprops={"color": "black"})
        for number, own in enumerate(values, 1):
            offsets = [number + 0.16 * ((17 * i) % 11 - 5) / 5 for i in range(len(own))]
            errors.plot(offsets, own, ".", color=f"C{number - 1}", ms=4)
        errors.set_yscale("log")
        errors.set_title(f"{pair}: error on held-out experiments")
        errors.set_ylabel("error / spread of the simulation")
        errors.grid(alpha=0.3, which="both", axis="y")
        covered.plot([0, 1], [0, 1], color="grey", linewidth=1)
        for name, own in found["coverage"].items():
            covered.plot(saved["levels"], own, marker="o", ms=3, label=name)
        covered.set_title(f"{pair}: intervals of the ensembles")
        covered.set_xlabel("nominal coverage")
        covered.set_ylabel("empirical coverage")
        covered.set_ylim(-0.02, 1.02)
        covered.grid(alpha=0.3)
        covered.legend(fontsize=8)
    return figure


def data_selection(saved: dict[str, Any]) -> Figure:
    """Rows: parts of wrong labels. Left: quality by batch size, a line per method. Right: λ_max on held-out data."""
    runs, quality = saved["runs"], saved["quality"]
    noises = sorted({one["noise"] for one in runs})
    methods = list(dict.fromkeys(one["method"] for one in runs))
    figure, axes = plt.subplots(
        len(noises), 2, figsize=(14, 3.6 * len(noises)), layout="constrained", squeeze=False, sharex=True
    )
    for noise, panels in zip(noises, axes, strict=True):
        for panel, key in zip(panels, ("quality", "lambda_valid"), strict=True):
            for number, method in enumerate(methods):
                own = [one for one in runs if (one["noise"], one["method"]) == (noise, method)]
                batches = sorted({one["batch"] for one in own})
                values = [[one[key] for one in own if one["batch"] == batch] for batch in batches]
                mean = [sum(part) / len(part) for part in values]
                style = "--" if method == "random" else "-"
                panel.plot(batches, mean, style, marker="o", color=f"C{number}", label=method)
                for batch, part in zip(batches, values, strict=True):
                    panel.plot([batch] * len(part), part, ".", color=f"C{number}", ms=3)
            panel.set_xscale("log", base=2)
            sizes = sorted({one["batch"] for one in runs})
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            title = quality if key == "quality" else "λ_max, held out"
            panel.set_title(f"{noise:.0%} wrong labels: {title}" if len(noises) > 1 else title)
            panel.set_xlabel("batch (samples)")
        panels[1].set_yscale("log")
        panels[1].yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        panels[1].yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title="training data", loc="outside right upper")
    return figure


def roofline(saved: dict[str, Any]) -> Figure:
    """Left: FLOP/s of each step against its FLOP per byte of memory traffic, below the roofs. Right: the four lower
    bounds of each step relative to its measured time; the longest bar names the limiter."""
    ceilings, points = saved["ceilings"], saved["points"]
    figure, (roofs, bars) = plt.subplots(
        1, 2, figsize=(14, max(4.6, 1.6 + 0.52 * len(points))), layout="constrained", width_ratios=(1, 1.1)
    )
    drawn = [p for p in points if p["flops"] and p["memory"]]
    ridge = max(ceilings["flops"].values()) / ceilings["memory"]  # FLOP per byte at which the roofs meet
    places = [p["flops"] / p["memory"] for p in drawn] + [ridge]
    low, high = min(places) / 4, max(places) * 8
    fastest = max(ceilings["flops"].values())
    for dtype, peak in ceilings["flops"].items():
        if peak < 0.1 * fastest:
            continue  # emulated: its roof would flatten the picture
        x = [low, peak / ceilings["memory"], high]
        y = [low * ceilings["memory"] / 1e9, peak / 1e9, peak / 1e9]
        (line,) = roofs.loglog(x, y, linewidth=1.8, label=f"{_short(dtype)} products, {peak / 1e9:.3g} GFLOP/s")
        line.set_zorder(1)
    for number, p in enumerate(drawn):
        x, y = p["flops"] / p["memory"], p["flops"] / p["seconds"] / 1e9
        roofs.loglog([x], [y], "o", color="black", ms=6, zorder=3)
        roofs.annotate(p["name"], (x, y), xytext=(6, -11 if number % 2 else 6), textcoords="offset points", fontsize=9)
    roofs.set_xlim(low, high)
    roofs.set_xlabel("FLOP per byte of memory traffic (modelled)")
    roofs.set_ylabel("GFLOP/s")
    roofs.set_ylim(None, 3 * fastest / 1e9)
    roofs.grid(alpha=0.3, which="both")
    title = f"slope: memory bandwidth, {ceilings['memory'] / 1e9:.3g} GB/s"
    roofs.legend(fontsize=9, title=title, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    limits = list(points[0]["bounds"])
    for i, limit in enumerate(limits):
        at = [k + 0.19 * (i - (len(limits) - 1) / 2) for k in range(len(points))]
        bars.barh(at, [p["bounds"][limit] / p["seconds"] for p in points], 0.18, label=limit)
    bars.axvline(1.0, color="black", linewidth=0.8)
    bars.set_yticks(range(len(points)), [f"{p['name']}\n{p['limiter']}" for p in points], fontsize=9)
    bars.invert_yaxis()
    bars.set_xlabel("lower bound / measured time")
    bars.grid(alpha=0.3, axis="x")
    bars.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(limits))
    return figure


def language_model(saved: dict[str, Any]) -> Figure:
    """Training step of a language model: peak memory and seconds against tokens per row."""
    rows = [dict(zip(saved["columns"], row, strict=True)) for row in saved["rows"]]
    cases = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    figure, axes = plt.subplots(len(cases), 2, figsize=(11, 4 * len(cases)), layout="constrained", squeeze=False)
    for case, (memory, seconds) in zip(cases, axes, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [
                row
                for row in rows
                if ((row["model"], row["dtype"]), row["method"]) == (case, method) and row["peak memory (MB)"]
            ]
            tokens = [row["tokens"] for row in mine]
            memory.loglog(tokens, [row["peak memory (MB)"] for row in mine], marker="o", label=method)
            seconds.loglog(tokens, [row["seconds"] for row in mine], marker="o", label=method)
        tokens = sorted({row["tokens"] for row in rows})
        sizes = [500 * 2**k for k in range(6)]
        memory.set_yticks(sizes, [f"{size:,}" for size in sizes])
        for axis, what in ((memory, "peak memory of the process (MB)"), (seconds, "seconds per step")):
            axis.set_xticks(tokens, [f"{n // 1024} K" if n >= 1024 else str(n) for n in tokens])
            axis.minorticks_off()
            axis.set_xlabel(f"tokens per row, {case[0]}, {case[1]}")
            axis.set_ylabel(what)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    return figure


def derivatives(saved: dict[str, Any]) -> Figure:
    """Methods for derivatives: saved tensors, peak memory and seconds against functions and against order."""
    equations = [pde for pde in dict.fromkeys(r["pde"] for r in saved["rows"]) if pde != "derivative"]
    views = [(pde, "functions", [r for r in saved["rows"] if r["pde"] == pde]) for pde in equations]
    views = [(pde, by, [r for r in rows if r["points"] == rows[0]["points"]]) for pde, by, rows in views]
    views.append(("∂ᵏu/∂xᵏ, 64 functions", "order", [r for r in saved["rows"] if r["pde"] == "derivative"]))
    figure, axes = plt.subplots(3, len(views), figsize=(3.4 * len(views), 8.6), layout="constrained", squeeze=False)
    kinds = (
        ("saved_bytes", 1e6, "saved for backward (MB)"),
        ("peak_bytes", 1e6, "peak memory (MB)"),
        ("seconds", 1.0, "seconds per step"),
    )
    for column, (title, by, rows) in zip(axes.T, views, strict=True):
        places = sorted({r[by] for r in rows})
        for axis, (key, unit, what) in zip(column, kinds, strict=True):
            for method in dict.fromkeys(r["method"] for r in saved["rows"]):
                mine = sorted((r[by], r[key] / unit) for r in rows if r["method"] == method and r[key])
                style = "--" if method in ("func_loop", "data_vect") else "-"
                axis.plot(*zip(*mine, strict=True) if mine else ((), ()), style, marker="o", ms=4, label=method)
            axis.set_yscale("log")
            if by == "functions":
                axis.set_xscale("log")
            axis.set_xticks(places, [str(place) for place in places])
            axis.minorticks_off()
            axis.set_xlabel(by)
            axis.set_ylabel(what)
            axis.grid(alpha=0.3)
        column[0].set_title(title.replace("_", "–"), fontsize=10)
    axes[0][0].legend(fontsize=7)
    return figure


def block(saved: dict[str, Any]) -> Figure:
    """One Evoformer block: relative time of each method, share of the multiply-adds, memory and time against n."""
    figure, ((bars, parts), (memory, seconds)) = plt.subplots(2, 2, figsize=(13, 8.5), layout="constrained")
    cases = list(dict.fromkeys((r["n"], r["dtype"]) for r in saved["measured"]))
    names = [f"n {n}, {_short(dtype)}" for n, dtype in cases]
    methods = list(dict.fromkeys(r["method"] for r in saved["measured"]))
    least: dict[tuple[int, str], float] = {}
    for i, method in enumerate(methods):  # ds4sci is the first
        by_case = {(r["n"], r["dtype"]): r["seconds"] for r in saved["measured"] if r["method"] == method}
        least = least or by_case
        bars.barh(
            [k + 0.2 * (i - 1.5) for k in range(len(cases))], [by_case[c] / least[c] for c in cases], 0.19, label=method
        )
    bars.set_xlabel("time relative to ds4sci, forward + backward")
    bars.legend(fontsize=8)
    for i, method in enumerate(methods):
        shares = {
            (r["n"], r["dtype"]): 100 * r["flops"] / (r["seconds"] * saved["rates"][f"multiply-adds {r['dtype']}"])
            for r in saved["measured"]
            if r["method"] == method
        }
        parts.barh([k + 0.2 * (i - 1.5) for k in range(len(cases))], [shares[c] for c in cases], 0.19, label=method)
    parts.set_xlabel("% of the processor's multiply-adds")
    for axis in (bars, parts):
        axis.set_yticks(range(len(cases)), names)
        axis.invert_yaxis()
    for method in dict.fromkeys(r["method"] for r in saved["growth"]):
        mine = [r for r in saved["growth"] if r["method"] == method]
        lengths = [r["n"] for r in mine]
        memory.loglog(lengths, [r["memory_mb"] for r in mine], marker="o", label=method)
        seconds.loglog(lengths, [r["seconds"] for r in mine], marker="o", label=method)
    memory.axhline(LIMIT_MB, color="grey", linewidth=1, label=f"{LIMIT_MB / 1e3:.0f} GB")
    ticks = sorted({r["n"] for r in saved["growth"]} & {*LENGTHS_SHOWN})
    for axis, what in ((memory, "peak memory (MB)"), (seconds, "seconds")):
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.set_xlabel("n (64 MSA rows, fp32)")
        axis.set_ylabel(f"{what}, forward + backward")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def attention(saved: dict[str, Any]) -> Figure:
    """Evoformer attention: speed-up by case, memory and time against n."""
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
    bars.set_yticks(range(len(cases)), [f"{name}, {_short(dtype)}" for name, dtype in cases])
    bars.invert_yaxis()
    bars.set_xlabel("speed-up over the fastest torch baseline")
    bars.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    for name in dict.fromkeys(r["implementation"] for r in saved["growth"]):
        mine = [r for r in saved["growth"] if r["implementation"] == name]
        style = {"linewidth": 2.5} if name in OURS else {"linewidth": 1.2, "linestyle": "--"}
        lengths = [r["n"] for r in mine]
        if all(r["memory_mb"] is not None for r in mine):
            memory.loglog(lengths, [r["memory_mb"] for r in mine], marker="o", label=name, **style)
        seconds.loglog(lengths, [r["seconds"] for r in mine], marker="o", label=name, **style)
    least = {r["n"]: r["result_mb"] for r in saved["growth"]}
    memory.loglog(list(least), list(least.values()), color="grey", linewidth=1, label="outputs and gradients only")
    for axis, what in ((memory, "peak memory (MB)"), (seconds, "seconds")):
        axis.set_xticks(GROWTH_LENGTHS, [str(n) for n in GROWTH_LENGTHS])
        axis.minorticks_off()
        axis.set_xlabel("n (16 MSA rows, 8 heads, 32 channels, fp32)")
        axis.set_ylabel(f"{what}, forward + backward")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
