"""Known vulnerabilities of the installed packages: of what runs, not of what a file asks for.

    pip install -e '.[audit]' && python jobs/audit.py

On a cluster whose environment has the extra ``audit``, submitted as a job, it looks at what the head runs.

pip-audit asks the Python Package Index (``PIP_AUDIT_VULNERABILITY_SERVICE=osv`` asks OSV). Ends with exit
status 1 where a package has a known vulnerability, or could not be looked up: an audit that saw nothing found
nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.table import Table

from lana_ray.monitoring.progress import console, say

OWN = "lana-ray"  # on no index


def main() -> int:
    """Prints the table; returns the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:  # it could not even begin
        say(f"audit: {(done.stderr.strip() or 'pip-audit said nothing').splitlines()[-1]}")
        return 1
    packages = [package for package in packages if package["name"] != OWN]
    unknown = {p["name"]: p["skip_reason"] for p in packages if "skip_reason" in p}
    rows = [(p, found) for p in packages for found in p.get("vulns", ())]
    if rows:
        console.print(_table(rows))
    for name, reason in unknown.items():
        say(f"not looked up: {name}: {reason}")
    affected = len({package["name"] for package, _ in rows})
    say(f"{len(packages) - len(unknown)} packages looked up, {affected} with a known vulnerability")
    return 1 if rows or unknown else 0


def _table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    table = Table("package", "version", "vulnerability", "mended in")
    for package, found in rows:
        names = ", ".join([found["id"], *found["aliases"]])
        table.add_row(package["name"], package["version"], names, ", ".join(found["fix_versions"]) or "-")
    return table


if __name__ == "__main__":
    sys.exit(main())
