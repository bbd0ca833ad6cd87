"""Options of the commands that select templates from hits: ``ds4sci predict`` and ``ds4sci data build``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ds4sci.data.structures.template_folder import TemplateFolder

TemplateStructures = Annotated[
    Path | None,
    typer.Option(
        "--template-structures", metavar="DIR", help="Folder of the mmCIF files of template hits: 1abc.cif or .cif.gz."
    ),
]
MaxTemplateDate = Annotated[
    datetime | None,
    typer.Option(
        "--max-template-date", formats=["%Y-%m-%d"], help="Structures released later are no templates. Default: none."
    ),
]
ObsoleteEntries = Annotated[
    Path | None,
    typer.Option("--obsolete-entries", metavar="FILE", help="obsolete.dat of the PDB: entries that others replaced."),
]


def template_hits(
    hits: Path | None, structures: Path | None, latest: datetime | None, obsolete: Path | None
) -> TemplateFolder | None:
    """Return where templates of hits come from, or None without these options.

    Raises ValueError for hits without structures and the reverse, and for other options without both.
    """
    from ds4sci.data.structures.template_folder import TemplateFolder

    if hits is None and structures is None:
        if latest is not None or obsolete is not None:
            raise ValueError("--max-template-date and --obsolete-entries need --templates with --template-structures")
        return None
    if hits is None or structures is None:
        given, other = ("structures", "hits") if hits is None else ("hits", "structures")
        raise ValueError(f"template {given} without {other}; give --templates and --template-structures")
    return TemplateFolder(hits, structures, None if latest is None else latest.date(), obsolete)
