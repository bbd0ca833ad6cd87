"""HTML elements of the report: a self-contained page without external resources."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

CSS = """
:root { --ink: #1f2933; --soft: #52606d; --line: #d9dee4; --edge: #8896a5; --wash: #f5f7fa; --paper: #ffffff;
  --mark: #e6f1f8; --note: #fff8e8; --blue: #0072b2; --good: #00664b; --bad: #a33b00 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #a6b2bf; --line: #39434e; --edge: #75818e; --wash: #1e252c; --paper: #14191e;
    --mark: #17344a; --note: #332a14; --blue: #6cbdf0; --good: #57c9a2; --bad: #ff9d66 }
  figure img { background: #fff; border-radius: 6px }
}
* { box-sizing: border-box }
html { color-scheme: light dark; -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
header { background: #102a43; color: #fff; padding: 2.2rem 0 1.8rem }
header p { color: #d3e0ee; margin: .3rem 0 0 }
main, header > div, footer { max-width: 1080px; margin: 0 auto; padding: 0 1.25rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem; padding-top: 1.1rem; border-top: 1px solid var(--line) }
section:first-child h2 { border-top: 0; margin-top: .6rem }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .3rem }
p { margin: .4rem 0 .8rem; max-width: 46rem }
a { color: var(--blue) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
  margin: 1.3rem 0 .6rem }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; background: var(--wash) }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: .86rem; display: block }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .92rem; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .42rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--soft) }
th:first-child, td:first-child { min-width: 9rem }
th:first-child, td:first-child, .words td, .words th { text-align: left }
.words td { overflow-wrap: anywhere }
.records :is(th, td):nth-child(2), .records :is(th, td):nth-child(n + 5) { text-align: left }
.records td a { white-space: nowrap; margin-right: .4rem } .records td:first-child a { white-space: normal }
.records td:last-child { min-width: 14rem; overflow-wrap: anywhere }
.words td:first-child { white-space: nowrap; color: var(--soft); width: 11rem }
tr.main td { font-weight: 700; background: var(--mark) }
.good { color: var(--good); font-weight: 600; white-space: nowrap }
.bad { color: var(--bad); font-weight: 600; white-space: nowrap }
figure { margin: 1rem 0; overflow-x: auto }
figure img { display: block; width: 100%; height: auto }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .3rem; max-width: 46rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem 1.6rem; align-items: center }
.pair figure { margin: .4rem 0; min-width: 0 }
.missing { border-left: 4px solid #e69f00; background: var(--note); padding: .6rem .9rem; max-width: 46rem }
.key span { display: inline-block; margin-right: 1rem; white-space: nowrap; font-size: .88rem; color: var(--soft) }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem;
  vertical-align: -1px; border: 1px solid #0003 }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace }
code { font: .92em ui-monospace, "DejaVu Sans Mono", Menlo, monospace }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
footer { color: var(--soft); font-size: .86rem; padding-top: 1.5rem; padding-bottom: 2.5rem }
@media (max-width: 720px) {
  .pair { grid-template-columns: 1fr } h1 { font-size: 1.5rem }
  figure.wide img { min-width: 640px } .words td:first-child { white-space: normal; width: 7rem }
}
@media print {
  header { background: none; color: inherit } header p { color: inherit } figure, .tile { break-inside: avoid }
}
"""


def page(title: str, header: str, body: Sequence[str], footer: str, *, scripts: Sequence[str] = ()) -> str:
    """HTML document. ``header``, ``body`` and ``footer`` are HTML; ``scripts`` are JavaScript, run in this order.

    The page can load nothing and run no other script. Raises ValueError if a script contains ``</script``.
    """
    if any("</script" in script.lower() for script in scripts):
        raise ValueError("a script contains </script, which would end its element; write it in two parts")
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = "; script-src" + "".join(f" 'sha256-{one}'" for one in hashes) if hashes else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # blocks every request and every script but the given ones, whatever the page contains
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'{allowed}\">\n"
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n'
        f"<header><div>{header}</div></header>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<footer>{footer}</footer>\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Section with a heading."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    """Paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def missing(text: str, command: str | None = None) -> str:
    """Notice in place of missing content, with the command that creates the content."""
    remedy = f" To create it: <code>{escape(command)}</code>." if command else ""
    return f'<p class="missing">{escape(text)}{remedy}</p>'


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers, each (value, name, remark)."""
    inside = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(remark)}</span></div>'
        for value, name, remark in entries
    )
    return f'<div class="tiles">{inside}</div>'


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    main: Sequence[int] = (),
    words: bool = False,
    raw: bool = False,
) -> str:
    """Table. Rows in ``main`` are highlighted; ``words`` aligns text to the left; ``raw`` cells are HTML."""
    clean = (lambda text: text) if raw else escape
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr class="{"main" if index in main else ""}">' + "".join(f"<td>{clean(cell)}</td>" for cell in row) + "</tr>"
        for index, row in enumerate(rows)
    )
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table class="{"words" if words else ""}">{top}<tbody>{body}</tbody></table></div>'


def figure(svg: str, alt: str, caption: str = "", *, wide: bool = False) -> str:
    """SVG as an embedded image, which keeps its ids separate. A ``wide`` figure scrolls on a narrow screen."""
    data = base64.b64encode(svg.encode()).decode()
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = ' class="wide"' if wide else ""
    return f'<figure{kind}><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">{note}</figure>'


def pair(left: str, right: str) -> str:
    """Two figures side by side, or one below the other on a narrow screen."""
    return f'<div class="pair">{left}{right}</div>'


def colour_key(entries: Sequence[tuple[str, str]]) -> str:
    """Legend of entries (colour, meaning)."""
    return (
        '<p class="key">'
        + "".join(f'<span><i style="background:{colour}"></i>{escape(text)}</span>' for colour, text in entries)
        + "</p>"
    )


def collapsible(title: str, text: str) -> str:
    """Preformatted text that opens with a click on its heading."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
