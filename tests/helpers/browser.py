"""Chromium on a page of an export, and the page's modules in Node.js; tests are skipped where these are missing."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from zoo.errors import ExportError

PAGE = ROOT / "zoo" / "export" / "onnx_web" / "page"


def require_runtime() -> None:
    """Skip the test without Node.js or the package of onnxruntime-web."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    from zoo.export.onnx_web.runtime import find_package

    try:
        find_package()
    except ExportError as error:
        pytest.skip(f"needs onnxruntime-web: {error}")


def _playwright() -> Path | None:
    """Folder of playwright-core, which make test-export puts into its environment."""
    folder = Path(sys.prefix) / "node_modules" / "playwright-core"
    return folder if (folder / "index.mjs").is_file() else None


def node(code: str, *arguments: Any) -> Any:
    """Run a module in Node.js and return what it prints as JSON; ``args`` are the arguments, read from JSON.

    ``PAGE/`` at the beginning of an import is the folder of the page's modules.
    """
    if (program := shutil.which("node")) is None:
        pytest.skip("needs Node.js")
    code = code.replace('"PAGE/', f'"{PAGE.as_uri()}/js/')
    head = 'import fs from "node:fs"; const args = JSON.parse(fs.readFileSync(0, "utf8"));'
    command = [program, "--input-type=module", "-e", head + code]
    done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def served(folder: Path):
    """Serve a folder as ``python -m http.server`` does, and yield the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def browse(folder: Path, work: Path, *steps: dict[str, Any], width: int = 1000, page: str = "") -> dict[str, Any]:
    """Open the page of an export, take the steps of ``browser.mjs``, and return its answer.

    No request may go to another host, and no step may cause an error in the console.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    playwright = _playwright()
    if browser is None:
        pytest.skip("needs chromium")
    if playwright is None:
        pytest.skip("needs playwright-core, which make test-export installs where npm is")
    with served(folder) as url:
        script = work / "script.json"
        script.write_text(json.dumps({"chromium": browser, "url": url + page, "width": width, "steps": steps}))
        command = ["node", str(Path(__file__).with_suffix(".mjs")), str(playwright), str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["requests"]
        assert [each for each in answer["requests"] if not each.startswith((url, f"blob:{url}", "data:"))] == []
    return answer
