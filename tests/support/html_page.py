"""Parser of the pages that ds4sci writes: checks their structure and collects what they contain."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Checks that every element is closed and that no attribute runs a script.

    images       attributes of ``img`` elements
    references   values of attributes that a browser loads or links to
    loaded       those of them that it loads without a click
    scripts      text of ``script`` elements that run
    data         values of ``script`` elements of JSON, by id
    ids          of all elements
    text         outside of scripts and styles
    """

    VOID = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.images: list[dict[str, str | None]] = []
        self.references: list[str] = []
        self.loaded: list[str] = []
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values)
        if tag not in self.VOID:
            self.open.append((tag, values))
        found = [str(values[key]) for key in ("src", "srcset", "href", "data", "action", "poster") if key in values]
        self.references += found
        if tag == "a":
            self.links += found
        else:
            self.loaded += found
        self.ids += [str(values["id"])] if "id" in values else []
        if tag == "img":
            self.images.append(values)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, values = self.open[-1] if self.open else ("", {})
        if tag == "script" and values.get("type") == "application/json":
            self.data[str(values["id"])] = json.loads(data)
        elif tag == "script":
            self.scripts.append(data)
        elif tag == "style":
            assert not re.search(r"@import|url\(", data)
        else:
            self.text += data

    def check_self_contained(self) -> None:
        """Nothing is loaded, and the policy of the page allows only its own scripts."""
        assert all(reference.startswith("data:") for reference in self.loaded)
        assert not any(re.match(r"\s*(\w+:|//)", link) for link in self.links)
        directives = dict(part.strip().partition(" ")[::2] for part in self.policy.split(";"))
        assert directives.pop("default-src") == "'none'"
        assert directives.pop("img-src") == "data:"
        assert directives.pop("style-src") == "'unsafe-inline'"
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in self.scripts]
        assert directives == ({"script-src": " ".join(f"'sha256-{one}'" for one in hashes)} if hashes else {})
