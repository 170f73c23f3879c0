"""The audit of installed packages, against a service that knows of one vulnerability, and against none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("pip_audit", reason="of the extra audit")

AUDIT = Path(__file__).parents[1] / "jobs" / "audit.py"


class _Service(BaseHTTPRequestHandler):
    """OSV's query, answered for jinja2 alone."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["package"]["name"]
        events = [{"introduced": "0"}, {"fixed": "99.0"}]
        package = {"ecosystem": "PyPI", "name": asked}
        known = {
            "id": "GHSA-0000",
            "aliases": ["CVE-2999-1"],
            "details": "Everything.",
            "modified": "2026-01-01T00:00:00Z",
            "affected": [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}],
        }
        answer = json.dumps({"vulns": [known]} if asked.lower() == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _audited(port: int) -> subprocess.CompletedProcess[str]:
    asked = {
        "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
        "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{port}/v1/query",
    }
    return subprocess.run(
        [sys.executable, str(AUDIT)], capture_output=True, text=True, env={**os.environ, **asked}
    )


def test_a_known_vulnerability_fails_the_audit(service: ThreadingHTTPServer) -> None:
    done = _audited(service.server_address[1])
    assert done.returncode == 1
    assert "CVE-2999-1, GHSA-0000" in done.stdout
    assert "99.0" in done.stdout
    assert done.stdout.rstrip().endswith("packages looked up, 1 with a known vulnerability")


def test_an_audit_that_reaches_nobody_fails(service: ThreadingHTTPServer) -> None:
    service.server_close()
    done = _audited(service.server_address[1])
    assert done.returncode == 1
    assert done.stdout.startswith("audit: ")
    assert "refused" in done.stdout
