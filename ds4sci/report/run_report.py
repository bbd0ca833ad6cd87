"""Report of a run: ``RUN/report.html``, one self-contained page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ds4sci.files.atomic_files import replace_text
from ds4sci.inference.trained_run import UNTRAINED
from ds4sci.metrics import METRICS, PERCENT_METRICS
from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.chain_sections import by_class, by_length, structures
from ds4sci.report.comparison_section import comparison
from ds4sci.report.noise_section import noise_parts
from ds4sci.report.run_artifacts import RunArtifacts, eval_command, read_artifacts
from ds4sci.report.structure_view import view_scripts
from ds4sci.report.timeline_section import timeline_parts

COLUMNS = ("lddt_ca", "tm_score", "gdt_ts", "rmsd", "right_handed", "bond_ok", "clash")
TRUTH = {"right_handed": 1.0, "bond_ok": 0.997, "clash": 0.0006}
"""Scores of the 160 true chains of ``chains_valid`` (``ds4sci.metrics.geometry``)."""


def write_report(run: Path | str) -> Path:
    """Write ``RUN/report.html`` from the files of the run folder, and return its path.

    The files are config.json, deepspeed.json, machine.json, commit.txt, metrics.jsonl, monitor/ and those of
    ``ds4sci.inference.trained_run.evaluation_files``. For a missing or damaged file, the page has a notice with the
    command that creates it. Only figures are computed. Raises ValueError if ``run`` is not a run folder.
    """
    artifacts = read_artifacts(Path(run))
    curves = html.section("Learning curves", *_curves(artifacts))
    if artifacts.task == "fold":
        body = [
            _scores(artifacts),
            curves,
            html.section("Held-out chains", *_chains(artifacts)),
            html.section("Predicted and true structures", *_structures(artifacts)),
            html.section("Calibration of the confidence (pLDDT)", *_calibration(artifacts)),
            html.section("Geometry", *_geometry(artifacts)),
        ]
    else:
        compared = comparison(artifacts)
        body = [html.section("Model and baselines", *compared)] if compared else []
        body += [html.section("Scores", *_held_out(artifacts)), curves]
    if parts := noise_parts(artifacts):
        body.append(html.section("Gradient noise and batch size", *parts))
    if parts := timeline_parts(artifacts.run):
        body.append(html.section("Timeline", *parts))
    body.append(html.section("Run", *_run(artifacts)))
    subtitle = html.escape(" · ".join(part for part in _subtitle(artifacts) if part))
    header = f"<h1>{html.escape(artifacts.name)}</h1><p>{subtitle}</p>"
    footer = "Created by <code>ds4sci report</code>. Self-contained: no network access."
    path = artifacts.run / "report.html"
    replace_text(path, html.page(f"{artifacts.name} · ds4sci", header, body, footer, scripts=view_scripts(body)))
    return path


def _held_out(artifacts: RunArtifacts) -> list[str]:
    """Metrics of the task at every evaluation. The best evaluation is highlighted."""
    if not artifacts.evaluations:
        return [html.missing("The run has not been evaluated yet.", eval_command(artifacts))]
    keys = figures.metrics_of(artifacts.evaluations)
    rows = [
        [f"{line['step']:,}", *(f"{line[key]:.4g}" if key in line else "–" for key in keys)]
        for line in artifacts.evaluations
    ]
    best = [number for number, line in enumerate(artifacts.evaluations) if line["step"] == artifacts.best_step]
    header = ["step", *(key.replace("_", " ") for key in keys)]
    note = "Held-out data, scored with the averaged (EMA) weights."
    return [html.table(header, rows, main=best), html.paragraph(note)]


def _subtitle(artifacts: RunArtifacts) -> list[str]:
    last = artifacts.train[-1] if artifacts.train else {}
    cpu = (artifacts.machine or {}).get("cpu")
    gpus = (artifacts.machine or {}).get("gpus") or []
    device = ", ".join(str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu) for gpu in gpus)
    return [
        f"task {(artifacts.config or {}).get('task', {}).get('name', '?')}",
        f"{last['step']:,} steps" if last else "",
        f"{float(last['seconds']) / 60:.1f} minutes" if "seconds" in last else "",
        device or (f"{artifacts.machine.get('cores')} cores of {cpu}" if artifacts.machine and cpu else ""),
        f"commit {artifacts.commit[:10]}",
    ]


def show(key: str, value: float | None) -> str:
    """Score as text, or a dash if there is none."""
    if value is None:
        return "–"
    if key in PERCENT_METRICS:
        # one decimal, because 99.7 % and 0.06 % must not appear as 100 % and 0 %
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if key in ("rmsd", "plddt") else f"{value:.3f}"


def _scores(artifacts: RunArtifacts) -> str:
    parts = [html.missing("Unreadable files: " + "; ".join(artifacts.unreadable))] if artifacts.unreadable else []
    if artifacts.held_out is None:
        parts.append(
            html.missing("The trained model has not been scored on held-out chains yet.", eval_command(artifacts))
        )
        means: dict[str, float] = {}
    else:
        means = artifacts.held_out["mean"]
        count, source = len(artifacts.held_out["per_chain"]), Path(artifacts.held_out["chains"])
        parts.append(
            html.tiles(
                [
                    (show("lddt_ca", means.get("lddt_ca")), "lDDT-Cα", "local structure, 0–1"),
                    (show("tm_score", means.get("tm_score")), "TM-score", "whole fold, 0–1"),
                    (show("right_handed", means.get("right_handed")), "right-handed helices", "real chains: 100 %"),
                    (show("bond_ok", means.get("bond_ok")), "valid Cα–Cα bonds", "real chains: 99.7 %"),
                    (show("clash", means.get("clash")), "residues with clashes", "real chains: 0.1 %"),
                ]
            )
        )
        parts.append(
            html.paragraph(
                f"Means over {count} chains of {source.name} that are not in the training set, predicted at "
                f"full length with the weights of step {artifacts.held_out['step']:,}."
            )
        )
        if artifacts.best_step is not None and artifacts.best_step != artifacts.held_out["step"]:
            parts.append(
                html.missing(
                    f"The best checkpoint is now step {artifacts.best_step:,}; these scores are of another step.",
                    eval_command(artifacts),
                )
            )
    rows, marks = [], []
    if means:
        rows.append(["trained model", *(show(key, means.get(key)) for key in COLUMNS), ""])
    if artifacts.untrained is not None:
        own = artifacts.untrained["mean"]
        rows.append(["untrained model", *(show(key, own.get(key)) for key in COLUMNS), _verdict(means, own)])
        marks.append(_verdict(means, own))
    for entry in (artifacts.baselines or {}).get("baselines", {}).values():
        verdict = _verdict(means, entry["mean"]) if entry["must_beat"] else ""
        rows.append([html.escape(entry["label"]), *(show(key, entry["mean"].get(key)) for key in COLUMNS), verdict])
    if rows:
        names = [METRICS[key] for key in COLUMNS]
        parts.append(html.table(["", *names, "model is better"], rows, main=[0] if means else [], raw=True))
    if artifacts.untrained is None:
        parts.append(html.missing("The untrained model has not been scored yet.", eval_command(artifacts, UNTRAINED)))
    if artifacts.baselines is None:
        parts.append(html.missing("The baselines have not been measured yet (ds4sci.baselines.measure_baselines)."))
    else:
        parts.append(
            html.paragraph(
                "The baselines use the training chains only. “Median distances” takes, for each pair of residues, the "
                "median distance of training pairs with the same separation in the sequence, and embeds these "
                "distances in three dimensions. lDDT-Cα is about 0.3 without any information about the fold, because "
                "neighbours in the sequence are always close in space."
            )
        )
        parts += [
            html.missing(f"{name}: skipped, {why}.") for name, why in artifacts.baselines.get("skipped", {}).items()
        ]
    return html.section("Scores", *parts)


def _verdict(means: dict[str, float], other: dict[str, float]) -> str:
    """Whether both lDDT-Cα and TM-score are higher than those of ``other``."""
    if not means or "lddt_ca" not in other:
        return ""
    keys = ("lddt_ca", "tm_score")
    lost = [METRICS[key] for key in keys if means.get(key, 0.0) <= other.get(key, 0.0)]
    if lost:
        return f'<span class="bad">✗ lower or equal {html.escape(", ".join(lost))}</span>'
    return f'<span class="good">✓ by {means["lddt_ca"] - other["lddt_ca"]:.3f}</span>'


def _baseline_lines(artifacts: RunArtifacts) -> dict[str, float]:
    short = {"distances_true_secondary": "median distances, true DSSP", "helix": "ideal helix"}
    found = (artifacts.baselines or {}).get("baselines", {})
    return {label: found[key]["mean"]["lddt_ca"] for key, label in short.items() if key in found}


def _curves(artifacts: RunArtifacts) -> list[str]:
    if not artifacts.train:
        return [html.missing("metrics.jsonl has no training step yet.")]
    picture = figures.svg(
        figures.learning_curves,
        artifacts.train,
        artifacts.evaluations,
        _baseline_lines(artifacts),
        size=(11, 5.2),
        panels=(1, 2),
    )
    last = artifacts.evaluations[-1] if artifacts.evaluations else None
    first, final = float(artifacts.train[0]["loss"]), float(artifacts.train[-1]["loss"])
    alt = f"Loss from {first:.3g} to {final:.3g} in {artifacts.train[-1]['step']} steps"
    if last:
        key = "lddt_ca" if artifacts.task == "fold" else next(iter(figures.metrics_of([last])), "score")
        name = "lDDT-Cα" if key == "lddt_ca" else key.replace("_", " ")
        alt += f"; {name} {show(key, last.get(key))} at step {last['step']}"
    caption = "Faint: logged values; strong: running mean. Held-out scores use the averaged (EMA) weights"
    chains = (artifacts.config or {}).get("data", {}).get("evaluation_chains")
    return [html.figure(picture, alt, caption + (f", on {chains} chains." if chains else "."), wide=True)]


def _chains(artifacts: RunArtifacts) -> list[str]:
    if artifacts.held_out is None:
        return [html.missing("This section needs the scores of the run.", eval_command(artifacts))]
    return [*by_length(artifacts), *by_class(artifacts)]


def _structures(artifacts: RunArtifacts) -> list[str]:
    if artifacts.held_out is None or not artifacts.chains:
        return [
            html.missing(
                "There are no saved predictions yet; scoring the validation chains of the run saves them.",
                eval_command(artifacts),
            )
        ]
    return structures(artifacts)


def _calibration(artifacts: RunArtifacts) -> list[str]:
    plddt, lddt = (_joined(artifacts, name) for name in ("plddt", "lddt"))
    good = np.isfinite(lddt)
    if good.sum() < 2:
        return [html.missing("This section needs scores of the validation chains of the run.", eval_command(artifacts))]
    rows = (artifacts.held_out or {}).get("per_chain", [])
    chains = np.array([(row["plddt"], row["lddt_ca"]) for row in rows if row.get("lddt_ca") is not None]).reshape(-1, 2)
    plddt, lddt = plddt[good].astype(float), lddt[good].astype(float)
    picture = figures.svg(figures.calibration, plddt, lddt, chains, size=(9.5, 4.2), panels=(1, 2))
    gap = float(plddt.mean() / 100 - lddt.mean())
    direction = "higher" if gap > 0 else "lower"
    of_residues, of_chains = _correlation(plddt, lddt), _correlation(*chains.T)
    text = (
        f"pLDDT is the model's estimate of its lDDT-Cα. Over {len(lddt):,} residues its correlation with the measured "
        f"lDDT-Cα is r = {of_residues:.2f} (chains: {of_chains:.2f}). On average it is {abs(gap):.3f} {direction}."
    )
    return [html.paragraph(text), html.figure(picture, "Measured lDDT against predicted pLDDT", wide=True)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 0 and b.std() > 0 else float("nan")


def _joined(artifacts: RunArtifacts, name: str) -> np.ndarray:
    parts = [fields[name] for fields in artifacts.chains.values() if name in fields]
    return np.concatenate(parts) if parts else np.empty(0)


def _geometry(artifacts: RunArtifacts) -> list[str]:
    if artifacts.held_out is None:
        return [html.missing("This section needs the scores of the run.", eval_command(artifacts))]
    means = artifacts.held_out["mean"]
    rows = [[METRICS[key], show(key, means.get(key)), f"{100 * true:.4g} %"] for key, true in TRUTH.items()]
    parts = [
        html.table(["", "predicted", "real chains"], rows),
        html.paragraph(
            "Bonds: neighbouring Cα atoms at a distance of 3.8 ± 0.3 Å. Clash: a backbone or Cβ atom is closer to an "
            "atom of a residue two or more positions away than the sum of their van der Waals radii minus 1.5 Å "
            "(AlphaFold 2's violation), or the Cα atoms are closer than 3.6 Å."
        ),
    ]
    predicted, true = _joined(artifacts, "torsion"), _joined(artifacts, "true_torsion")
    if len(predicted) and len(true):
        angles = figures.svg(figures.ramachandran, predicted, true, size=(6.2, 3.5), panels=(1, 2))
        bonds = [
            np.concatenate([_steps(chain[name]) for chain in artifacts.chains.values()]) for name in ("ca", "true_ca")
        ]
        lengths = figures.svg(figures.bond_lengths, *bonds, size=(6.2, 3.5))
        parts.append(
            html.pair(
                html.figure(
                    angles, "Ramachandran plots of prediction and truth", "Backbone angles, fraction of residues."
                ),
                html.figure(lengths, "Histogram of Cα–Cα bond lengths of prediction and truth"),
            )
        )
    return parts


def _steps(ca: np.ndarray) -> np.ndarray:
    """Distances between neighbouring Cα atoms, without residues that have no coordinates (at the origin)."""
    known = np.abs(ca).sum(axis=1) > 0
    return np.linalg.norm(np.diff(ca.astype(float), axis=0), axis=1)[known[1:] & known[:-1]]


def _run(artifacts: RunArtifacts) -> list[str]:
    source = artifacts.run
    parts = [html.paragraph("To repeat this run from the same commit:")]
    commit = artifacts.commit.removesuffix("+changes")
    dirty = "  # plus uncommitted changes" if commit != artifacts.commit else ""
    lines = [f"git checkout {commit}{dirty}"] if commit and " " not in commit and commit != "unknown" else []
    lines += [
        f"ds4sci train {source}/config.json train.name={artifacts.name}-repeat",
        eval_command(artifacts),
        f"ds4sci report {source}",
    ]
    parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
    rows = _machine_rows(artifacts)
    parts += [html.table([], rows, words=True)] if rows else []
    parts += [] if artifacts.machine else [html.missing("machine.json is missing: the machine is unknown.")]
    if artifacts.config is not None:
        parts.append(html.collapsible("Resolved run file (config.json)", json.dumps(artifacts.config, indent=2)))
    else:
        parts.append(html.missing("config.json is missing or unreadable."))
    if artifacts.deepspeed is not None:
        parts.append(html.collapsible("DeepSpeed configuration (deepspeed.json)", artifacts.deepspeed))
    return parts


def _machine_rows(artifacts: RunArtifacts) -> list[list[str]]:
    machine, last = artifacts.machine or {}, artifacts.train[-1] if artifacts.train else {}
    gpus = machine.get("gpus") or []
    rows = [
        ["processor", f"{machine.get('cores', '?')} of {machine.get('cores_present', '?')} cores, {machine['cpu']}"]
        if machine.get("cpu")
        else [],
        ["GPU", ", ".join(map(str, gpus)) or "none"] if machine else [],
        ["memory", f"{machine['memory_gb']} GB"] if "memory_gb" in machine else [],
        ["operating system", f"{machine['system']}, Python {machine.get('python', '?')}"]
        if "system" in machine
        else [],
        ["versions", ", ".join(f"{k} {v}" for k, v in (machine.get("versions") or {}).items())] if machine else [],
        ["training time", f"{float(last['seconds']) / 60:.1f} minutes"] if "seconds" in last else [],
        ["throughput", f"{float(last['samples_per_second']):.1f} samples/s"] if "samples_per_second" in last else [],
        ["peak memory", f"{float(last['memory_mb']):,.0f} MB per process"] if "memory_mb" in last else [],
    ]
    return [row for row in rows if row]
