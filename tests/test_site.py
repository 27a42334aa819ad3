"""The website shows the solved run's outputs beside the student's code, renders offline, is whole or not built."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import docutils.core
import docutils.nodes
import pytest
from conftest import EXPECTED_LABS, LABS, PROJECT, cell

from labkit.course import executed
from labkit.course.apidoc import as_rst, field_comments, public_modules
from labkit.course.executed import WIDGET, beside, run
from labkit.course.notebooks import encode
from labkit.course.offline import loads_in, outside_loads
from labkit.course.pages import contact_sheet, lab_page, without_missing_labs
from labkit.course.release import release, student_notebook
from labkit.course.site import build, jupyter_book, swap

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def notebook(*cells: dict) -> dict:
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def shown(**data) -> dict:
    kinds = {"png": "image/png", "html": "text/html", "text": "text/plain", "widget": WIDGET}
    return {"output_type": "display_data", "metadata": {}, "data": {kinds[k]: v for k, v in data.items()}}


def said(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": text}


# --- outputs beside the student's code --------------------------------------------------------------------------------


def test_outputs_come_by_cell_id_and_sources_from_the_student(solved):
    executed = json.loads(json.dumps(solved))
    executed["cells"][3]["outputs"] = [said("stdout", "full points")]
    executed["cells"].reverse()
    page = beside(student_notebook(solved), executed)
    assert [one["source"] for one in page["cells"]] == [one["source"] for one in student_notebook(solved)["cells"]]
    assert {one["id"]: one["outputs"] for one in page["cells"] if one.get("outputs")} == {
        "setup": solved["cells"][1]["outputs"],
        "check-overlay": [said("stdout", "full points")],
    }
    assert "hazy_images" not in json.dumps(page), "a solution or the widgets' state is on the page"


def test_other_cells_than_the_students_are_refused(solved):
    with pytest.raises(ValueError, match=r"got \['extra'\] in one only"):
        beside(student_notebook(solved), notebook(*solved["cells"], cell("extra", "1")))


def outputs_on_page(*outputs: dict, after: str = "*Figure 1. A **red** sign\nof $3$ `px`.*") -> tuple[list, dict]:
    student = notebook(cell("a", "x"), cell("b", after, "markdown"))
    page = beside(student, notebook({**cell("a", "x"), "outputs": list(outputs)}))
    return page["cells"][0]["outputs"], page["cells"][0]["metadata"]


def test_a_widget_stays_only_as_its_picture():
    assert outputs_on_page(shown(png="abc", text="Explorer()", widget={"model_id": "1"}))[0] == [
        shown(png="abc", text="Explorer()")
    ]
    assert outputs_on_page(shown(text="IntSlider(value=0)", widget={"model_id": "1"}))[0] == []
    assert outputs_on_page(shown(text="0.97"))[0] == [shown(text="0.97")]


def test_progress_bars_go_and_prints_stay():
    bar = said("stderr", "100%|████| 10/10 [00:00<00:00, 1e5it/s]")
    assert outputs_on_page(bar, said("stdout", "CA 97%"))[0] == [said("stdout", "CA 97%")]


def test_a_figures_caption_is_its_alt_text():
    assert outputs_on_page(shown(png="abc"))[1]["mystnb"]["image"]["alt"] == "Figure 1. A red sign of 3 px."
    assert "mystnb" not in outputs_on_page(shown(text="1"))[1]


def test_a_solved_lab_runs_in_an_empty_folder_with_this_python():
    source = "import os, sys\nprint(sys.executable, os.listdir())"
    ran = run(notebook(cell("where", source)), "00_where.ipynb")
    assert "".join(ran["cells"][0]["outputs"][0]["text"]) == f"{sys.executable} []\n"


@pytest.mark.skipif(os.name == "nt", reason="signal 0 asks POSIX systems whether a process lives")
def test_no_kernel_stays_behind():
    ran = run(notebook(cell("who", "import os; print(os.getpid())")), "00_who.ipynb")
    with pytest.raises(ProcessLookupError):
        os.kill(int("".join(ran["cells"][0]["outputs"][0]["text"])), 0)


FAILING = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "never ends": ("import time; time.sleep(60)", "no end after 2 seconds"),
    "kernel dies": ("import os; os._exit(1)", "[Dd]ied"),
}


@pytest.mark.parametrize(("source", "reason"), FAILING.values(), ids=FAILING.keys())
def test_a_failing_cell_is_named(source, reason):
    with pytest.raises(RuntimeError, match=rf"labs/02_x.ipynb, cell 'second'.*{reason}"):
        run(notebook(cell("first", "a = 1"), cell("second", source), cell("third", "a")), "labs/02_x.ipynb", timeout=2)


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_run_is_kept_until_the_notebook_the_code_or_a_setting_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABKIT_PROFILE", raising=False)
    ran = []
    monkeypatch.setattr(executed, "run", lambda solved, where, timeout: ran.append(where) or solved)
    first, second = ({"cells": [], "metadata": {"x": x}, "nbformat": 4, "nbformat_minor": 5} for x in (1, 2))
    assert executed.run_once(first, "a") == executed.run_once(first, "b") == first and ran == ["a"]
    executed.run_once(second, "c")
    monkeypatch.setenv("LABKIT_PROFILE", "quick")  # what it is without the variable
    executed.run_once(first, "the same")
    monkeypatch.setenv("LABKIT_PROFILE", "full")
    executed.run_once(first, "d")
    monkeypatch.setattr(executed, "source_hash", lambda *entries: "edited")
    executed.run_once(first, "e")
    for kept in (tmp_path / "cache" / "runs").glob("*.ipynb"):
        kept.write_text("{")
    executed.run_once(first, "f")
    assert ran == ["a", "c", "d", "e", "f"]


def test_a_failing_lab_leaves_the_last_good_site_alone(tmp_path):
    (tmp_path / "labs").mkdir()
    broken = notebook(cell("title", "# X", "markdown"), cell("boom", "1 / 0"), cell("check", "1", grade=True, points=1))
    (tmp_path / "labs" / "00_x.ipynb").write_bytes(encode(broken))
    for name in ("labkit", "book", "_config.yml", "pyproject.toml", "environment.yml"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("the last good one")
    with pytest.raises(RuntimeError, match=r"labs/00_x.ipynb, cell 'boom'"):
        build(tmp_path, tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]


def test_swap_replaces_a_folder_as_a_whole(tmp_path):
    for folder, name in (("new", "a.html"), ("site", "b.html")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    swap(tmp_path / "new", tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["a.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "site"]


def test_another_folder_than_the_projects_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without a _config"):
        build(tmp_path)


def small_book(folder: Path, text: str) -> Path:
    shutil.copytree(PROJECT / "book" / "_static", folder / "_static")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (folder / "index.md").write_text(text)
    (folder / "references.bib").touch()
    return folder


FAULTS = {
    "[gone](gone.md)": "'myst' cross-reference target not found: 'gone.md'",
    "{py:func}`labkit.gone`": "py:func reference target not found: labkit.gone",
    "{cite:t}`nobody2020`": 'could not find bibtex key "nobody2020"',
    "```{gone}\n```": "Unknown directive type: 'gone'",
}


@pytest.mark.slow
def test_every_warning_fails_the_build_and_is_named(tmp_path):
    book = small_book(tmp_path / "book", "# Title\n\n" + "\n\n".join(FAULTS))
    with pytest.raises(RuntimeError) as caught:
        jupyter_book(PROJECT / "_config.yml", book, tmp_path / "out")
    assert not [fault for fault in FAULTS.values() if fault not in str(caught.value)], caught.value


@pytest.mark.slow
def test_a_sound_page_builds(tmp_path):
    book = small_book(tmp_path / "book", "# Title\n\nA formula $x$.\n")
    jupyter_book(PROJECT / "_config.yml", book, tmp_path / "out")
    assert "<h1>Title" in (tmp_path / "out" / "_build" / "html" / "index.html").read_text()


# --- offline ----------------------------------------------------------------------------------------------------------

LOADS = [
    ("a.html", '<script src="https://cdn.example.org/a.js"></script>'),
    ("a.html", "<script async src=//cdn.example.org/a.js></script>"),
    ("a.html", '<link rel="stylesheet" href="https://fonts.example.org/css?family=Inter">'),
    ("a.html", '<link href="https://fonts.example.org" rel="preconnect">'),
    ("a.html", '<link rel="shortcut icon" href="http://example.org/favicon.ico">'),
    ("a.html", '<img alt="" src="HTTPS://img.example.org/a.png">'),
    ("a.html", '<img alt="" srcset="a.png 1x, https://img.example.org/b.png 2x">'),
    ("a.html", '<iframe src="https://video.example.org"></iframe>'),
    ("a.html", "<p style=\"background: url('https://img.example.org/a.png')\">"),
    ("a.html", "<style>@import 'https://fonts.example.org/a.css';</style>"),
    ("a.html", '<script>const THEBE_JS_URL = "https://cdn.example.org/thebe/index.js"</script>'),
    ("a.html", '<script type="module">import m from "https://cdn.example.org/npm/mermaid@9"</script>'),
    ("a.css", "@import url(https://fonts.example.org/css2?family=Inter);"),
    ("a.css", 'src: url("//fonts.example.org/a.woff2") format("woff2")'),
    ("a.js", "s.src='https://cdn.example.org/npm/katex/dist/katex.min.js'"),
    ("a.js", 'import("https://cdn.example.org/x.mjs")'),
    ("a.svg", '<svg><image href="https://img.example.org/a.png"/></svg>'),
]
HARMLESS = [
    (
        "a.html",
        '<a href="https://arxiv.org/abs/1708.06733">paper</a><link rel="canonical" href="https://example.org/">',
    ),
    ("a.html", '<script src="_static/a.js"></script><img alt="" src="data:image/png;base64,AA//BB">'),
    ("a.html", "<code>&lt;script src='https://cdn.example.org/a.js'&gt;</code>"),
    ("a.html", '<svg xmlns="http://www.w3.org/2000/svg"><use href="#a"/></svg>'),
    ("a.css", "/* https://example.org/licence */ src: url(fonts/a.woff2)"),
    ("a.js", "// see https://example.org/docs\nconst ns = 'http://www.w3.org/1998/Math/MathML'"),
]


@pytest.mark.parametrize(("name", "text"), LOADS)
def test_a_load_from_another_host_is_found(name, text, tmp_path):
    (tmp_path / "index.html").write_text("<p>fine</p>")
    assert outside_loads(tmp_path) == []
    (tmp_path / name).write_text(text)
    (found,) = outside_loads(tmp_path)
    assert found.startswith(f"{name}: ") and "example.org" in found.lower()


@pytest.mark.parametrize(("name", "text"), HARMLESS)
def test_a_link_is_no_load(name, text):
    assert loads_in(text, Path(name).suffix) == []


def test_no_page_is_an_error_not_a_pass(tmp_path):
    with pytest.raises(ValueError, match="no page"):
        outside_loads(tmp_path)


# --- computed pages ---------------------------------------------------------------------------------------------------


def test_links_to_missing_labs_become_text():
    text = "[Tour](labs/00_tour.ipynb), [Next](labs/01_classifier.ipynb), [paper](https://a.org)"
    assert without_missing_labs(text, {"00_tour"}) == "[Tour](labs/00_tour.ipynb), Next, [paper](https://a.org)"


def test_a_lab_page_has_a_download_link_under_its_title():
    page = lab_page(notebook(cell("title", "# Lab 07\nWhy?", "markdown")), "07_x")
    first, _, link, *rest = "".join(page["cells"][0]["source"]).split("\n")
    assert first == "# Lab 07" and '../_sources/labs/07_x.ipynb" download=' in link and rest == ["", "Why?"]
    with pytest.raises(ValueError, match="title"):
        lab_page(notebook(cell("title", "Lab 07", "markdown")), "07_x")


def test_the_contact_sheet_is_the_same_picture_each_time(tmp_path):
    from PIL import Image

    from labkit.data.signs import CLASSES

    assert {contact_sheet(tmp_path / name) for name in ("a.jpg", "b.jpg")} <= set(CLASSES)
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert Image.open(tmp_path / "a.jpg").size == (1536, 576) and (tmp_path / "a.jpg").stat().st_size < 300_000


NASTY = [
    "A rate * of x_ and |y|, `code`, an odd ` tick, [1]_ and <b>.",
    "1. not a list\n.. not a directive\n:param x: not a field",
    "- an item with `x`\n  that goes on\n- another: x_",
    "Title\n\n    superimpose   x + x_n^t\n      deeper\n\nAnd on.",
    "signs    12 signs, 32x32\nown.npz  your data:\n         more",
    "Ends with two colons::\n\nx ** 2 and `a`s and `b`.",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_any_prose_becomes_sound_restructuredtext_with_the_same_words(text):
    source = "\n".join(as_rst(text))
    document = docutils.core.publish_doctree(source, settings_overrides={"report_level": 5})
    assert not list(document.findall(docutils.nodes.system_message))
    assert not list(document.findall(docutils.nodes.problematic))
    words = re.sub(r"`([^`]+)`", r"\1", re.sub(r"^- ", "", text, flags=re.MULTILINE)).split()
    assert document.astext().replace("\0", "").split() == words


def test_comments_behind_fields_describe_parameters():
    from labkit.attacks import BadNets

    comments = field_comments(BadNets)
    assert comments["size"] == "pixels" and "alpha" in comments and "target" not in comments
    assert field_comments(Path) == {}


# --- the real site, built once ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the project's website: the last build if nothing it is made from is newer, else a new one."""
    html = PROJECT / "book" / "_build" / "html"
    folders = [(PROJECT / "labs", "*.ipynb"), (PROJECT / "labkit", "*.[pm][yd]"), (PROJECT / "results", "*.json")]
    sources = [path for folder, pattern in folders for path in folder.rglob(pattern)] + [PROJECT / "_config.yml"]
    sources += [path for path in (PROJECT / "book").rglob("*") if not {"_build", "labs"} & {*path.parts}]
    built = (html / "index.html").stat().st_mtime if (html / "index.html").exists() else 0
    return html if built > max(path.stat().st_mtime for path in sources) else build(PROJECT)


@pytest.mark.whole
def test_every_lab_has_a_page_with_outputs_and_gives_the_clean_notebook(site, tmp_path):
    release(PROJECT / "labs", tmp_path)
    assert len(LABS) >= len(EXPECTED_LABS)
    for path in LABS:
        page = (site / "labs" / f"{path.stem}.html").read_text(encoding="utf-8")
        downloads = re.findall(r'href="(\.\./_sources/labs/[^"]+\.ipynb)"', page)
        assert len(downloads) >= 2, "the line under the title and the button"
        for link in downloads:
            given = (site / "labs" / link).resolve()
            assert given.read_bytes() == (tmp_path / "student" / path.name).read_bytes()
        assert 'class="cell_output' in page and "<img alt=" in page and "points" in page
        assert "widget-view" not in page and "require.js" not in page and "it/s]" not in page
    assert (site / "student.zip").read_bytes() == (tmp_path / "student.zip").read_bytes()


@pytest.mark.whole
def test_every_public_module_has_an_api_page_that_shows_its_members(site):
    modules = dict(public_modules(PROJECT / "labkit"))
    assert {"labkit.attacks.badnets", "labkit.defenses.strip", "labkit.course.site"} <= set(modules)
    assert not [name for name in modules if re.match(r"labkit\.checks\.lab\d", name)]
    for name in modules:
        assert (site / "api" / f"{name}.html").exists()
    page = (site / "api" / "labkit.attacks.badnets.html").read_text(encoding="utf-8")
    assert 'id="labkit.attacks.badnets.BadNets.trigger"' in page


@pytest.mark.whole
def test_the_site_loads_nothing_from_elsewhere_and_no_link_inside_is_broken(site):
    assert outside_loads(site) == []
    broken, seen = [], 0
    for page in site.rglob("*.html"):
        if page.parent.name == "_static":
            continue  # a template of the theme
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        for link in links.found:
            seen += 1
            target = (page.parent / unquote(link.split("#")[0].split("?")[0])).resolve()
            if not target.exists():
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken and seen > 100


class Links(HTMLParser):
    """Every address in `found` that stays on the site."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value and not re.match(r"[a-z]+:|#", value):
                self.found.append(value)


@pytest.mark.whole
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_page_renders_in_a_browser_without_a_network(site, tmp_path):
    page, asked = rendered(site / "notation.html", tmp_path)
    assert page.count("<mjx-container") > 10 and "mjx-merror" not in page, "MathJax did not run"
    assert 'data-theme="' in page and not asked
    planted = tmp_path / "planted.html"
    planted.write_text('<img alt="" src="https://img.example.org/a.png">')
    assert rendered(planted, tmp_path)[1] == {"https://img.example.org/a.png"}


def rendered(page: Path, folder: Path) -> tuple[str, set[str]]:
    """The page as a browser without a network shows it, and the addresses that it asked for in vain."""
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom"
    ).split()
    log = folder / f"{page.stem}.json"
    places = [f"--user-data-dir={folder / page.stem}", f"--log-net-log={log}", page.as_uri()]
    command = [str(CHROMIUM), *options, "--host-resolver-rules=MAP * ~NOTFOUND", *places]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    by_pages = [params for params in events if params.get("initiator", "not an origin") != "not an origin"]
    return shown, {params["url"] for params in by_pages if params.get("url", "").startswith("http")}
