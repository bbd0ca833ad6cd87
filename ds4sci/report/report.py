"""RUN/report.html: what a run learnt, shown on one page that needs nothing but a browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ds4sci.files.atomic_files import replace_text
from ds4sci.inference.trained_run import UNTRAINED
from ds4sci.metrics import METRICS, PERCENT_METRICS
from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.chains import by_class, by_length, cards
from ds4sci.report.run_artifacts import Story, eval_command, read_story

COLUMNS = ("lddt_ca", "tm_score", "gdt_ts", "rmsd", "right_handed", "bond_ok", "clash")
TRUTH = {"right_handed": 1.0, "bond_ok": 0.997, "clash": 0.0006}
"""What the 160 true chains of ``chains_valid`` score (``ds4sci.metrics.geometry``)."""


def write_report(run: Path | str) -> Path:
    """Write ``RUN/report.html`` from what lies in the run folder, and return its path.

    Read are config.json, deepspeed.json, machine.json, commit.txt, metrics.jsonl and the files of
    ``ds4sci.inference.trained_run.evaluation_files``. What is missing or damaged is said on the page, with the
    command that makes it. Nothing is computed but pictures. Raises ``ValueError`` when ``run`` is no run folder.
    """
    story = read_story(Path(run))
    curves = html.section("Learning curves", *_curves(story))
    if story.task == "fold":
        body = [
            _scores(story),
            curves,
            html.section("Every held-out chain", *_chains(story)),
            html.section("Predicted beside true", *_pictures(story)),
            html.section("Does it know what it knows?", *_calibration(story)),
            html.section("Is it shaped like protein?", *_geometry(story)),
        ]
    else:
        body = [html.section("How good is it?", *_held_out(story)), curves]
    body.append(html.section("Run", *_run(story)))
    said = html.escape(" · ".join(part for part in _subtitle(story) if part))
    header = f"<h1>{html.escape(story.name)}</h1><p>{said}</p>"
    footer = "Made by <code>ds4sci report</code>. Self-contained: no network, no scripts."
    path = story.run / "report.html"
    replace_text(path, html.page(f"{story.name} · ds4sci", header, body, footer))
    return path


def _held_out(story: Story) -> list[str]:
    """A task's own metrics at every evaluation, the best one marked."""
    if not story.evaluations:
        return [html.missing("Not evaluated yet.", eval_command(story))]
    keys = figures.metrics_of(story.evaluations)
    rows = [
        [f"{line['step']:,}", *(f"{line[key]:.4g}" if key in line else "–" for key in keys)]
        for line in story.evaluations
    ]
    best = [number for number, line in enumerate(story.evaluations) if line["step"] == story.best_step]
    header = ["step", *(key.replace("_", " ") for key in keys)]
    note = "Held-out data, with the averaged (EMA) weights."
    return [html.table(header, rows, main=best), html.paragraph(note)]


def _subtitle(story: Story) -> list[str]:
    last = story.train[-1] if story.train else {}
    cpu = (story.machine or {}).get("cpu")
    gpus = (story.machine or {}).get("gpus") or []
    device = ", ".join(str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu) for gpu in gpus)
    return [
        f"task {(story.config or {}).get('task', {}).get('name', '?')}",
        f"{last['step']:,} steps" if last else "",
        f"{float(last['seconds']) / 60:.1f} minutes" if "seconds" in last else "",
        device or (f"{story.machine.get('cores')} cores of {cpu}" if story.machine and cpu else ""),
        f"commit {story.commit[:10]}",
    ]


def show(key: str, value: float | None) -> str:
    """A score as text; – where there is none."""
    if value is None:
        return "–"
    if key in PERCENT_METRICS:
        # Shares of a per mille count here: 99.7 % and 0.06 % are not 100 and 0.
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if key in ("rmsd", "plddt") else f"{value:.3f}"


def _scores(story: Story) -> str:
    parts = [html.missing("Could not be read: " + "; ".join(story.broken))] if story.broken else []
    if story.held_out is None:
        parts.append(html.missing("The trained model has not been scored on held-out chains yet.", eval_command(story)))
        means: dict[str, float] = {}
    else:
        means = story.held_out["mean"]
        count, source = len(story.held_out["per_chain"]), Path(story.held_out["chains"])
        parts.append(
            html.tiles(
                [
                    (show("lddt_ca", means.get("lddt_ca")), "lDDT-Cα", "local shape, 0–1"),
                    (show("tm_score", means.get("tm_score")), "TM-score", "whole fold, 0–1"),
                    (show("right_handed", means.get("right_handed")), "right-handed helices", "real chains: 100 %"),
                    (show("bond_ok", means.get("bond_ok")), "Cα–Cα bonds right", "real chains: 99.7 %"),
                    (show("clash", means.get("clash")), "residues that clash", "real chains: 0.1 %"),
                ]
            )
        )
        parts.append(
            html.paragraph(
                f"Means over {count} chains of {source.name} that the model never saw, predicted "
                f"at full length with the weights of step {story.held_out['step']:,}."
            )
        )
        if story.best_step is not None and story.best_step != story.held_out["step"]:
            parts.append(
                html.missing(f"The best checkpoint is now step {story.best_step:,}; score again.", eval_command(story))
            )
    rows, marks = [], []
    if means:
        rows.append(["trained model", *(show(key, means.get(key)) for key in COLUMNS), ""])
    if story.untrained is not None:
        own = story.untrained["mean"]
        rows.append(["the same model untrained", *(show(key, own.get(key)) for key in COLUMNS), _verdict(means, own)])
        marks.append(_verdict(means, own))
    for entry in (story.baselines or {}).get("baselines", {}).values():
        verdict = _verdict(means, entry["mean"]) if entry["must_beat"] else ""
        rows.append([html.escape(entry["label"]), *(show(key, entry["mean"].get(key)) for key in COLUMNS), verdict])
    if rows:
        names = [METRICS[key] for key in COLUMNS]
        parts.append(html.table(["", *names, "must be beaten"], rows, main=[0] if means else [], raw=True))
    if story.untrained is None:
        parts.append(html.missing("The untrained model has not been scored.", eval_command(story, UNTRAINED)))
    if story.baselines is None:
        parts.append(html.missing("The baselines have not been measured (ds4sci.baselines.measure_baselines)."))
    else:
        parts.append(
            html.paragraph(
                "Baselines know only the training chains. “Median distances” are those of pairs equally far apart in "
                "the chain, embedded in three dimensions: statistics without any knowledge of this chain's fold. "
                "lDDT-Cα has a floor near .3, because neighbours in a chain are always near each other."
            )
        )
        parts += [html.missing(f"{name}: skipped, {why}.") for name, why in story.baselines.get("skipped", {}).items()]
    return html.section("How good is it?", *parts)


def _verdict(means: dict[str, float], other: dict[str, float]) -> str:
    """Whether lDDT-Cα and TM-score both beat ``other``."""
    if not means or "lddt_ca" not in other:
        return ""
    keys = ("lddt_ca", "tm_score")
    lost = [METRICS[key] for key in keys if means.get(key, 0.0) <= other.get(key, 0.0)]
    if lost:
        return f'<span class="bad">✗ not in {html.escape(", ".join(lost))}</span>'
    return f'<span class="good">✓ by {means["lddt_ca"] - other["lddt_ca"]:.3f}</span>'


def _floors(story: Story) -> dict[str, float]:
    short = {"distances_true_secondary": "true-DSSP baseline", "helix": "an ideal helix"}
    found = (story.baselines or {}).get("baselines", {})
    return {label: found[key]["mean"]["lddt_ca"] for key, label in short.items() if key in found}


def _curves(story: Story) -> list[str]:
    if not story.train:
        return [html.missing("metrics.jsonl has no training step yet.")]
    picture = figures.svg(
        figures.learning_curves, story.train, story.evaluations, _floors(story), size=(11, 5.2), panels=(1, 2)
    )
    last = story.evaluations[-1] if story.evaluations else None
    first, final = float(story.train[0]["loss"]), float(story.train[-1]["loss"])
    alt = f"Loss from {first:.3g} to {final:.3g} in {story.train[-1]['step']} steps"
    if last:
        key = "lddt_ca" if story.task == "fold" else next(iter(figures.metrics_of([last])), "score")
        name = "lDDT-Cα" if key == "lddt_ca" else key.replace("_", " ")
        alt += f"; {name} {show(key, last.get(key))} at step {last['step']}"
    caption = "Faint: as logged; strong: running mean. Held-out scores are of the averaged (EMA) weights"
    chains = (story.config or {}).get("data", {}).get("evaluation_chains")
    return [html.figure(picture, alt, caption + (f", on {chains} of the chains." if chains else "."), wide=True)]


def _chains(story: Story) -> list[str]:
    if story.held_out is None:
        return [html.missing("Shown once the run has been scored.", eval_command(story))]
    return [*by_length(story), *by_class(story)]


def _pictures(story: Story) -> list[str]:
    if story.held_out is None or not story.chains:
        return [
            html.missing("No predictions are kept yet; scoring the run's own chains keeps them.", eval_command(story))
        ]
    return cards(story)


def _calibration(story: Story) -> list[str]:
    plddt, lddt = (_joined(story, name) for name in ("plddt", "lddt"))
    good = np.isfinite(lddt)
    if good.sum() < 2:
        return [html.missing("Shown once the run's own chains have been scored.", eval_command(story))]
    rows = (story.held_out or {}).get("per_chain", [])
    chains = np.array([(row["plddt"], row["lddt_ca"]) for row in rows if row.get("lddt_ca") is not None]).reshape(-1, 2)
    plddt, lddt = plddt[good].astype(float), lddt[good].astype(float)
    picture = figures.svg(figures.calibration, plddt, lddt, chains, size=(9.5, 4.2), panels=(1, 2))
    gap = float(plddt.mean() / 100 - lddt.mean())
    side = "above" if gap > 0 else "below"
    of_residues, of_chains = _correlation(plddt, lddt), _correlation(*chains.T)
    text = (
        f"pLDDT is the model's own guess of its lDDT. Over {len(lddt):,} residues it correlates with the measured one "
        f"at r = {of_residues:.2f} (chains: {of_chains:.2f}) and lies {abs(gap):.3f} {side} it on average."
    )
    return [html.paragraph(text), html.figure(picture, "Measured lDDT against predicted pLDDT", wide=True)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 0 and b.std() > 0 else float("nan")


def _joined(story: Story, name: str) -> np.ndarray:
    parts = [fields[name] for fields in story.chains.values() if name in fields]
    return np.concatenate(parts) if parts else np.empty(0)


def _geometry(story: Story) -> list[str]:
    if story.held_out is None:
        return [html.missing("Shown once the run has been scored.", eval_command(story))]
    means = story.held_out["mean"]
    rows = [[METRICS[key], show(key, means.get(key)), f"{100 * true:.4g} %"] for key, true in TRUTH.items()]
    parts = [
        html.table(["", "predicted", "real chains"], rows),
        html.paragraph(
            "Bonds: neighbouring Cα atoms 3.8 ± 0.3 Å apart. Clash: a residue with a backbone or Cβ atom nearer to one "
            "of a residue two or more away than their van-der-Waals radii less 1.5 Å (AlphaFold 2's violation), or "
            "with Cα atoms nearer than 3.6 Å."
        ),
    ]
    predicted, true = _joined(story, "torsion"), _joined(story, "true_torsion")
    if len(predicted) and len(true):
        angles = figures.svg(figures.ramachandran, predicted, true, size=(6.2, 3.5), panels=(1, 2))
        bonds = [np.concatenate([_steps(chain[name]) for chain in story.chains.values()]) for name in ("ca", "true_ca")]
        lengths = figures.svg(figures.bond_lengths, *bonds, size=(6.2, 3.5))
        parts.append(
            html.pair(
                html.figure(
                    angles, "Ramachandran plots of prediction and truth", "Backbone angles, share of residues."
                ),
                html.figure(lengths, "Histogram of Cα–Cα bond lengths of prediction and truth"),
            )
        )
    return parts


def _steps(ca: np.ndarray) -> np.ndarray:
    """Lengths of steps along a trace; those beside a residue without coordinates (at the origin) are left out."""
    known = np.abs(ca).sum(axis=1) > 0
    return np.linalg.norm(np.diff(ca.astype(float), axis=0), axis=1)[known[1:] & known[:-1]]


def _run(story: Story) -> list[str]:
    source = story.run
    parts = [html.paragraph("Again, from the same commit:")]
    commit = story.commit.removesuffix("+changes")
    dirty = "  # plus changes that were not committed" if commit != story.commit else ""
    lines = [f"git checkout {commit}{dirty}"] if commit and " " not in commit and commit != "unknown" else []
    lines += [
        f"ds4sci train {source}/config.json train.name={story.name}-again",
        eval_command(story),
        f"ds4sci report {source}",
    ]
    parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
    rows = _machine_rows(story)
    parts += [html.table([], rows, words=True)] if rows else []
    parts += [] if story.machine else [html.missing("machine.json is missing: the machine is not known.")]
    if story.config is not None:
        parts.append(html.folded("Run file, resolved (config.json)", json.dumps(story.config, indent=2)))
    else:
        parts.append(html.missing("config.json is missing or unreadable."))
    if story.deepspeed is not None:
        parts.append(html.folded("DeepSpeed's configuration (deepspeed.json)", story.deepspeed))
    return parts


def _machine_rows(story: Story) -> list[list[str]]:
    machine, last = story.machine or {}, story.train[-1] if story.train else {}
    gpus = machine.get("gpus") or []
    rows = [
        ["processor", f"{machine.get('cores', '?')} of {machine.get('cores_present', '?')} cores, {machine['cpu']}"]
        if machine.get("cpu")
        else [],
        ["graphics", ", ".join(map(str, gpus)) or "none"] if machine else [],
        ["memory", f"{machine['memory_gb']} GB"] if "memory_gb" in machine else [],
        ["system", f"{machine['system']}, Python {machine.get('python', '?')}"] if "system" in machine else [],
        ["versions", ", ".join(f"{k} {v}" for k, v in (machine.get("versions") or {}).items())] if machine else [],
        ["training", f"{float(last['seconds']) / 60:.1f} minutes"] if "seconds" in last else [],
        ["speed", f"{float(last['samples_per_second']):.1f} samples/s"] if "samples_per_second" in last else [],
        ["peak memory", f"{float(last['memory_mb']):,.0f} MB a process"] if "memory_mb" in last else [],
    ]
    return [row for row in rows if row]
