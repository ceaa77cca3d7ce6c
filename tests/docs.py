"""The site of `make docs` as its readers find it: docs.py SITE [BROWSER]

Every link and anchor of every page is there. With a browser, every page opens without an error in the console, and the search of the
header finds a function.
"""

import functools
import http.server
import json
import re
import subprocess
import sys
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

site = Path(sys.argv[1]).resolve()
pages = sorted(site.rglob("*.html"))


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None and tag != "base":
                self.links.add(value)


parsed = functools.lru_cache(maxsize=None)(Page)


def anchored(page, fragment):
    anchors = parsed(page).anchors
    lines = re.fullmatch(r"(\d+)-(\d+)", fragment)  # of source code: rustdoc's pages mark them
    return fragment in anchors or unquote(fragment) in anchors or bool(lines and {lines[1], lines[2]} <= anchors)


def broken_links():
    checked = 0
    for page in pages:
        for link in parsed(page).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            path = unquote(parts.path)
            target = (site / path[1:] if path.startswith("/") else page.parent / path).resolve() if path else page
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or site not in target.parents:
                yield f"{page.relative_to(site)}: {link} is not there"
            elif parts.fragment and target.suffix == ".html" and not anchored(target, parts.fragment):
                yield f"{page.relative_to(site)}: {link}: there is no such place"
    print(f"{len(pages)} pages, {checked} links")
    if checked < 1000:
        yield f"expected more than {checked} links"


# Opens each page in a frame, four at a time, then types into the search of the first one, and sends what came of it.
VISITOR = """<!doctype html><title>visitor</title><script>
const pages = PAGES;
const open = (page) => new Promise((loaded) => {
  const frame = document.createElement("iframe");
  frame.style = "width: 1200px; height: 800px";
  frame.onload = () => loaded(frame);
  frame.src = page;
  document.body.append(frame);
});
const pause = () => new Promise((over) => setTimeout(over, 50));
const texts = (view) => [view.document.body?.innerText ?? "", ...Array.from(view.frames).flatMap(texts)];
const found = async (view, text) => {
  for (let i = 0; i < 200; i++, await pause()) if (texts(view).some((shown) => shown.includes(text))) return true;
  return false;
};
onload = async () => {
  const missing = [];
  const rest = pages.slice();
  const visit = async () => {
    for (let page; (page = rest.pop()); ) {
      const frame = await open(page);
      const shown = frame.contentDocument;
      if (!shown.title || !shown.body.innerText.trim()) missing.push(page + " shows nothing");
      frame.remove();
    }
  };
  await Promise.all([visit(), visit(), visit(), visit()]);
  let view = (await open("index.html")).contentWindow;
  for (let i = 0; i < 100 && !view.document.getElementById("MSearchField"); i++) await pause();
  const field = view.document.getElementById("MSearchField");
  field.focus();
  field.value = "mc_model_load";
  field.dispatchEvent(new view.KeyboardEvent("keyup", {key: "d", keyCode: 68, bubbles: true}));
  if (!(await found(view, "mc_model_load_hub"))) missing.push("the search of the header finds no mc_model_load_hub");
  view = (await open("rust/metal_candle/index.html?search=LoraTrainer")).contentWindow;
  if (!(await found(view, "metal_candle::LoraTrainer"))) missing.push("the search of the Rust library finds no LoraTrainer");
  await fetch("/result", {method: "POST", body: JSON.stringify(missing)});
};
</script><body></body>"""


def broken_pages(browser):
    result, done = [], threading.Event()
    # What the search shows within a page is seen there, and so is where a page sends to; source code is text.
    seen = [page.relative_to(site).as_posix() for page in pages if 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")]
    seen = [page for page in seen if not page.startswith(("search/", "rust/src/"))]

    class Server(http.server.SimpleHTTPRequestHandler):
        def handle(self):
            try:
                super().handle()
            except ConnectionError:  # a page was left before all of it came
                pass

        def do_GET(self):
            if self.path == "/favicon.ico":
                self.send_response(204)
                self.end_headers()
            elif self.path == "/visitor":
                self.answer(VISITOR.replace("PAGES", json.dumps(seen)))
            else:
                super().do_GET()

        def do_POST(self):
            result.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer("")
            done.set()

        def answer(self, text):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_request(self, code="-", size="-"):
            if code == http.HTTPStatus.NOT_FOUND:
                result.append(f"{self.path} is not there")

        def log_error(self, format, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile("w+") as log:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr"]
        address = f"http://127.0.0.1:{server.server_address[1]}/visitor"
        command = [browser, *options, f"--user-data-dir={profile}", address]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        finished = done.wait(timeout=400)
        process.terminate()
        process.wait()
        log.seek(0)
        # How fast rustdoc's pages get their fonts is no error.
        said = [line.strip() for line in log if re.search(r":CONSOLE[(:]", line) and '"A preload for ' not in line]
    server.shutdown()
    return [*result, *said, *([] if finished else ["the pages were not seen in 400 s"])]


errors = list(broken_links())
if len(sys.argv) > 2:
    errors += broken_pages(sys.argv[2])
sys.exit("\n".join(errors[:20]) if errors else 0)
