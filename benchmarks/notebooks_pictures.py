"""Pictures of a notebook in a real JupyterLab, light and dark, by a headless Chromium.

    pip install playwright && apt install chromium
    python benchmarks/notebooks_pictures.py 01-r1-zero --out pictures [--small | --committed]

A JupyterLab on the loopback address opens a copy of the notebook without outputs in an empty
folder. All cells are run by the menu, as a person does it; with --committed nothing is run, and the
notebook has the outputs that `make notebooks` wrote. Then every screenful is saved as
`NN-name-light-01.png`, and again in the dark theme. The browser's own errors and the cells that
failed are printed; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from notebooks import environment, inject_small, read, scripts
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1280, 900
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
SCROLLED = f"{PANEL} .jp-WindowedPanel-outer"
BUSY = f"{PANEL} .jp-Notebook-ExecutionIndicator"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="number or name of a notebook")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--small", action="store_true", help="with its small settings")
    parser.add_argument("--committed", action="store_true", help="with its outputs; runs nothing")
    parser.add_argument("--limit", type=float, default=600, help="seconds for all cells")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    asked = parser.parse_args()
    script = scripts([asked.name])[0]
    if asked.committed:
        notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    else:
        notebook = inject_small(read(script)) if asked.small else read(script)
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jupyterlab-") as top:
        work = Path(top) / "work"
        work.mkdir()
        nbformat.write(notebook, work / f"{script.stem}.ipynb")
        with lab(Path(top), work) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=asked.browser, args=["--no-sandbox"] if os.getuid() == 0 else []
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            said: list[str] = []
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(address.replace("?", f"lab/tree/{script.stem}.ipynb?"))
            page.locator(f"{PANEL} .jp-CodeCell").first.wait_for(timeout=60_000)
            page.wait_for_timeout(2000)
            seconds, failed = 0.0, 0
            if not asked.committed:
                seconds, failed = run_all(page, work / f"{script.stem}.ipynb", asked.limit)
            page.keyboard.press("Control+b")  # no side bar
            for theme in ("light", "dark"):
                choose(page, "Settings", "Theme", f"JupyterLab {theme.capitalize()}")
                screens(page, asked.out, f"{script.stem}-{theme}")
            browser.close()
    print(f"{script.stem}: {seconds:.0f} s, outputs of errors: {failed}, of the browser: {said}")
    sys.exit(bool(failed or said))


@contextmanager
def lab(top: Path, work: Path) -> Iterator[str]:
    """A JupyterLab of its own on the loopback address; its address with the token."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    token = secrets.token_hex(16)
    places = {f"JUPYTER_{kind}_DIR": str(top / kind.lower()) for kind in ("CONFIG", "RUNTIME")}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(top / "settings")
    news = top / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    root = ["--allow-root"] if os.getuid() == 0 else []
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", *root],
        cwd=work,
        env={**environment(top), **places, "JUPYTER_TOKEN": token},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}")
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address: str, seconds: float = 90) -> None:
    """Return as soon as a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def choose(page: Page, *names: str) -> None:
    """Click through the menu bar."""
    page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{names[0]}$")).click()
    for name in names[1:]:
        item = page.locator(".lm-Menu-item", has_text=re.compile(f"^{name}")).last
        item.hover()
        page.wait_for_timeout(400)
        last = item
    last.click()
    page.wait_for_timeout(1500)


def run_all(page: Page, file: Path, limit: float) -> tuple[float, int]:
    """Run all cells by the menu and wait until none is left; seconds, and outputs of errors.

    The page has elements for the cells in view only, so the saved file is asked.
    """
    page.locator(f"{BUSY}[data-status='idle']").wait_for(timeout=60_000)
    start = time.monotonic()
    choose(page, "Run", "Run All Cells")
    while time.monotonic() - start < limit:
        page.wait_for_timeout(1000)
        if not page.locator(f"{BUSY}[data-status='idle']").count():
            continue
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1500)
        cells = [cell for cell in nbformat.read(file, as_version=4).cells if "outputs" in cell]
        failed = sum(o.output_type == "error" for cell in cells for o in cell.outputs)
        if failed or all(cell.execution_count for cell in cells if cell.source.strip()):
            return time.monotonic() - start, failed
    raise SystemExit(f"not done after {limit:g} s")


def screens(page: Page, out: Path, name: str) -> None:
    """Save every screenful of the notebook."""
    page.evaluate(f"document.querySelector('{SCROLLED}').scrollTo(0, 0)")
    for number in range(1, 40):
        page.wait_for_timeout(700)
        page.screenshot(path=out / f"{name}-{number:02d}.png")
        moved = page.evaluate(
            f"""() => {{
                const panel = document.querySelector('{SCROLLED}'), before = panel.scrollTop;
                panel.scrollBy(0, panel.clientHeight - 60);
                return panel.scrollTop > before;
            }}"""
        )
        if not moved:
            return


if __name__ == "__main__":
    main()
