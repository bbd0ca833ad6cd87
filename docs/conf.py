"""Sphinx configuration of the documentation site; ``bash launch/docs.sh`` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from ds4sci import __version__

project = "ds4sci"
author = "the ds4sci developers"
project_copyright = "2026, the ds4sci developers"
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "config_reference",
    "plain_docstrings",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = f"ds4sci {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
nitpicky = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have the types; docstrings have shapes and units
autodoc_preserve_defaults = True
