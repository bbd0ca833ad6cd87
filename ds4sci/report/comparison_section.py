"""Section of the report with the result of ``ds4sci eval``: methods side by side, and the figures of the evaluation.

An evaluation gets the section by two entries of its values: ``comparison``, {"header": […], "rows": [[…], …]}, whose
first row is that of the trained model, and ``figures``, a list of {"file", "title", "alt"} with the names of SVG files
among its ``report_files``. Both are optional.
"""

from __future__ import annotations

from ds4sci.inference.trained_run import evaluation_files
from ds4sci.report import page as html
from ds4sci.report.run_artifacts import RunArtifacts, eval_command


def comparison(artifacts: RunArtifacts) -> list[str]:
    """Return the HTML of the section; empty if the run's evaluation offers nothing to show."""
    found = artifacts.held_out or {}
    parts = []
    if table := found.get("comparison"):
        parts.append(html.table(table["header"], table["rows"], main=[0]))
        parts.append(html.paragraph(f"Held-out data, with the weights of step {found['step']:,}."))
        if artifacts.best_step not in (None, found["step"]):
            text = f"The best checkpoint is now step {artifacts.best_step:,}; these scores are of another step."
            parts.append(html.missing(text, eval_command(artifacts)))
    folder = evaluation_files(artifacts.run)["held_out"].parent
    for entry in found.get("figures", []):
        parts.append(f"<h3>{html.escape(entry['title'])}</h3>")
        path = folder / entry["file"]
        if path.is_file():
            parts.append(html.figure(path.read_text(encoding="utf-8"), entry["alt"], wide=True))
        else:
            parts.append(html.missing(f"{path.name} is missing.", eval_command(artifacts)))
    return parts
