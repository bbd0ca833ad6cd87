"""Headline table: every claim is computed from its JSON file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds4sci.bench import headline, tables

MEASUREMENTS = tables.load(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.mark.parametrize("claim", headline.CLAIMS, ids=lambda claim: claim.text)
def test_claim_has_a_figure(claim: headline.Claim) -> None:
    figure = claim.figure(MEASUREMENTS[claim.file])
    assert re.search(r"\d", figure)
    assert f"| {claim.text} | **{figure}** | {claim.baseline} |" in tables.headline(MEASUREMENTS)


def test_span_covers_every_cell() -> None:
    assert headline.span(["1.82 × (SDPA)", 4.5, "0.97 ×"]) == "0.97–4.5 ×"
    assert headline.span([2.0, "2.00 ×"]) == "2 ×"


def test_longest_block_agrees_with_the_notes() -> None:
    figures = MEASUREMENTS["evoformer_block"]
    (claim,) = (claim for claim in headline.CLAIMS if claim.text.startswith("Longest Evoformer block"))
    longest = [re.search(r"longest n in 8 GB is (\d+)", note) for note in figures["notes"]]
    assert {int(found[1]) for found in longest if found} == {320, 1120}
    assert claim.figure(figures) == "1,120 residues (baseline: 320)"


def test_results_page_has_every_measurement_once() -> None:
    page = tables.results_page(MEASUREMENTS)
    for measurement in MEASUREMENTS.values():
        assert page.count(tables.section(measurement, heading="### {}", plots="../benchmarks")) == 1
    assert f"## {tables.OTHER}" not in page, "every measurement belongs to a section"
