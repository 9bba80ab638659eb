"""The built pages, as a reader's browser sees them: no broken link, no missing image, no error.

``sphinx-build -W --keep-going -b html docs docs/_build/html`` builds them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import unitednet_mu as un

pytestmark = pytest.mark.site

SITE = Path(__file__).parent.parent / "docs" / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MODULES = ("tl", "pp", "pl", "get", "datasets", "metrics")
#: Seconds for all pages together.
PATIENCE = 240


@pytest.fixture
def site() -> Path:
    if not (SITE / "index.html").is_file():
        pytest.skip(
            "the pages are not built: sphinx-build -W --keep-going -b html docs docs/_build/html"
        )
    return SITE


class Page(HTMLParser):
    """What a page links to, loads and shows, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.pictures: list[tuple[str, str]] = []
        self.places: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "img":
            self.pictures.append((found.get("src", ""), found.get("alt", "")))
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loaded.append(found["href"])


@cache
def page(path: Path) -> Page:
    return Page(path)


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def target(origin: Path, address: str) -> Path:
    path = unquote(urlsplit(address).path)
    return (origin.parent / path).resolve() if path else origin.resolve()


# ------------------------------------------------------------------ without a browser


def test_every_page_is_there(site: Path) -> None:
    found = {path.relative_to(site).as_posix() for path in pages(site)}
    public = {
        f"generated/unitednet_mu.{module}.{name}.html"
        for module in MODULES
        for name in getattr(un, module).__all__
    }
    texts = {f"{path.stem}.html" for path in (SITE.parents[1]).glob("*.md")}
    assert public | texts <= found


def test_no_link_is_broken(site: Path) -> None:
    broken = []
    for path in pages(site):
        for link in page(path).links:
            if urlsplit(link).scheme:
                continue
            end, place = target(path, link), unquote(urldefrag(link).fragment)
            there = end.is_file() and (not place or place in page(end).places)
            if not there:
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_pages_load_nothing_from_elsewhere_and_all_they_need(site: Path) -> None:
    wrong = [
        f"{path.name}: {address}"
        for path in pages(site)
        for address in page(path).loaded
        if not address.startswith("data:")
        and (urlsplit(address).netloc or not target(path, address).is_file())
    ]
    assert not wrong


def without_words(path: Path) -> list[str]:
    """Pictures of a page whose alternative text is missing, or the name of a file."""
    return [
        source
        for source, text in page(path).pictures
        if len(text) <= 40 or " " not in text or source in text
    ]


def test_every_picture_says_in_words_what_it_shows(site: Path) -> None:
    names = {path: path.relative_to(site).as_posix() for path in pages(site)}
    assert not {name: bad for path, name in names.items() if (bad := without_words(path))}
    # they were there to be read: one on each text page that has any, those of a tutorial
    counts = {name: len(page(path).pictures) for path, name in names.items()}
    assert counts["method.html"] == counts["index.html"] == 1
    assert counts["tutorials/1_first_steps.html"] == 7


def test_pictures_without_words_are_found(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    words = "Dots of features by cell types, genes on the left and antibodies on the right."
    path.write_text(
        f'<img src="a.png" alt="{words}"><img src="b.png"><img src="c.png" alt="">'
        f'<img src="d.png" alt="d.png"><img src="e.png" alt="figure">',
        "utf-8",
    )
    assert without_words(path) == ["b.png", "c.png", "d.png", "e.png"]


# ------------------------------------------------------------------ with one

#: Put on top of every page: tells the frame around it what goes wrong, from the first script on.
LISTENER = """<script>{
const say = what => parent.errors.push(location.pathname + ": " + what);
addEventListener("error", event => say(event.message || event.target.outerHTML), true);
addEventListener("unhandledrejection", event => say(event.reason));
console.error = (...what) => say(what.join(" "));
}</script>"""
#: Opens one page after the other in a frame, and reports what it finds.
HARNESS = """<!doctype html><meta charset="utf-8">
<iframe id="frame" width="1300" height="900"></iframe>
<script>
var errors = [];
const addresses = %s, frame = document.getElementById("frame"), pages = {};
const open = address => new Promise(done => { frame.onload = done; frame.src = address; });
(async () => {
  for (const address of addresses) {
    await open(address);
    const inside = frame.contentDocument, root = inside.documentElement;
    await Promise.all([...inside.images].map(image => image.decode().catch(() => {})));
    pages[address] = {
      title: inside.title,
      missing: [...inside.images].filter(i => !i.naturalWidth).map(i => i.getAttribute("src")),
      wide: root.scrollWidth > root.clientWidth + 1,
    };
  }
  await fetch("/-report", { method: "POST", body: JSON.stringify({ pages, errors }) });
})();
</script>"""


class Server(ThreadingHTTPServer):
    """Gives the pages, keeps what was asked for in vain and what the harness reports."""

    daemon_threads = True

    def __init__(self, site: Path) -> None:
        self.addresses = [f"/{path.relative_to(site).as_posix()}" for path in pages(site)]
        self.missed: list[str] = []
        self.report: dict[str, Any] = {}
        self.done = threading.Event()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(site)))


class Handler(SimpleHTTPRequestHandler):
    """The harness and its report; pages with the listener in them; files."""

    server: Server

    def do_GET(self) -> None:
        """Answer with the harness, a page or a file."""
        if self.path == "/-check":
            self.answer(HARNESS % json.dumps(self.server.addresses))
        elif self.path in self.server.addresses:
            text = Path(self.translate_path(self.path)).read_text("utf-8")
            self.answer(text.replace("<head>", f"<head>{LISTENER}", 1))
        else:
            super().do_GET()

    def answer(self, text: str) -> None:
        """Send a page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        """Take the report."""
        self.server.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def send_error(self, code: int, *args: Any, **more: Any) -> None:
        """Note what is not there; a browser asks for an icon of its own accord."""
        if self.path != "/favicon.ico":
            self.server.missed.append(f"{code} {self.path}")
        super().send_error(code, *args, **more)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def browse(site: Path, folder: Path) -> Server:
    """Let the browser open all pages; returns the server, with what it has seen."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser to open the pages with, looked for {', '.join(BROWSERS)}")
    with Server(site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={folder / 'profile'}",
            "--remote-debugging-port=0",  # keeps it open
            f"http://127.0.0.1:{server.server_address[1]}/-check",
        ]
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
            finished = server.done.wait(PATIENCE)
            process.terminate()
            process.wait(30)
        server.shutdown()
        thread.join()
    assert finished, log.read_text("utf-8", errors="replace")[-2000:]
    return server


def test_pages_open_in_a_browser_without_an_error(site: Path, tmp_path: Path) -> None:
    server = browse(site, tmp_path)
    found = server.report["pages"]
    assert sorted(found) == sorted(server.addresses)
    assert all(one["title"] for one in found.values())
    assert not {address: one for address, one in found.items() if one["missing"] or one["wide"]}
    assert not server.report["errors"]
    assert not server.missed


def test_the_browser_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "site"
    wrong.mkdir()
    body = '<img src="nowhere.png"><div style="width:5000px">x</div><script>nonsense();</script>'
    text = f"<!doctype html><html><head><title>t</title></head><body>{body}</body></html>"
    (wrong / "a.html").write_text(text, "utf-8")
    (wrong / "b.html").write_text(text.replace(body, "<script>console.error(1)</script>"), "utf-8")
    server = browse(wrong, tmp_path)
    found = server.report["pages"]
    assert found["/a.html"] == {"title": "t", "missing": ["nowhere.png"], "wide": True}
    assert found["/b.html"] == {"title": "t", "missing": [], "wide": False}
    assert "404 /nowhere.png" in server.missed
    errors = " ".join(server.report["errors"])
    assert "nonsense is not defined" in errors
    assert "/b.html: 1" in errors
