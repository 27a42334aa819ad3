"""Does the website render without a network?

    add_mathjax(site)        MathJax from a package, copied beside the pages
    outside_loads(site)      every script, style, font or picture that a page would fetch from another host

A link that the reader may click is no load; a `<link rel="preconnect">` is one, it opens a connection. In scripts every
string that is an absolute address of a script, style or font counts, used or not.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

MATHJAX = "sphinx-mathjax-offline"  # a distribution of MathJax 3 on PyPI, used as a folder of files
CDN = "https://cdn.jsdelivr.net/npm/"  # where MathJax would get its speech engine if a reader turned it on
MATHJAX_FILES = ("tex-svg.js", "input/tex/extensions")  # SVG needs no fonts, which browsers refuse from file: pages
AWAY = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import\s)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
IN_SCRIPT = re.compile(
    r"""["'`]((?:https?:)?//[^"'`\s]+?(?:\.(?:m?js|css|woff2?|ttf|otf|wasm)\b|@latest|/npm/|/css2?\?)[^"'`\s]*)""",
    re.IGNORECASE,
)
LOADED = {"src", "srcset", "data", "poster", "background"}  # attributes whose address is fetched at once
FETCHED_LINKS = {"alternate stylesheet", "dns-prefetch", "icon", "manifest", "modulepreload", "preconnect", "prefetch",
                 "preload", "shortcut", "apple-touch-icon", "mask-icon", "stylesheet"}  # fmt: skip


def add_mathjax(site: Path) -> None:
    """Copy MathJax to `_static/mathjax`, where `mathjax_path` in _config.yml points."""
    spec = importlib.util.find_spec(MATHJAX)
    if spec is None or not spec.origin:
        raise RuntimeError(f"expected the package {MATHJAX} for formulas, got none: pip install 'labkit[course]'")
    source, target = Path(spec.origin).parent / "static" / "mathjax", site / "_static" / "mathjax"
    for name in MATHJAX_FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, target / name)
    script = target / MATHJAX_FILES[0]
    script.write_text(script.read_text(encoding="utf-8").replace(CDN, "sre/"), encoding="utf-8")


def outside_loads(site: Path) -> list[str]:
    """'file: address' for everything that is loaded from another host; [] is what one hopes for.

    Raises ValueError if there is no page to read.
    """
    found = []
    pages = [path for path in sorted(site.rglob("*")) if path.suffix in (".html", ".css", ".js", ".mjs", ".svg")]
    if not any(path.suffix == ".html" for path in pages):
        raise ValueError(f"expected a website, got no page in {site}: build it first")
    for path in pages:
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(site)}: {address}" for address in loads_in(text, path.suffix)]
    return found


def loads_in(text: str, kind: str) -> list[str]:
    """The foreign addresses that a page, style sheet, picture or script of this suffix fetches."""
    if kind == ".css":
        return IN_STYLE.findall(text)
    if kind in (".js", ".mjs"):
        return IN_SCRIPT.findall(text)
    page = Page()
    page.feed(text)
    return page.found


class Page(HTMLParser):
    """Collects in `found` what one HTML or SVG file loads from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inside = tag
        loaded = LOADED | ({"href", "xlink:href"} if tag in ("image", "use") else set())
        if tag == "link" and FETCHED_LINKS & set(values.get("rel", "").lower().split()):
            loaded = loaded | {"href"}
        for name in loaded & set(values):
            addresses = values[name].split(",") if name == "srcset" else [values[name]]
            self.found += [address.strip() for address in addresses if AWAY.match(address)]
        self.found += IN_STYLE.findall(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        pattern = {"style": IN_STYLE, "script": IN_SCRIPT}.get(self.inside)
        if pattern:
            self.found += pattern.findall(data)
