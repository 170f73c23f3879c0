"""Lists known vulnerabilities of the installed packages, whatever versions a requirements file asks for.

    pip install -e '.[audit]' && python jobs/audit.py

On a cluster whose environment has the extra ``audit``, a job with this script checks the head's packages.

pip-audit asks the Python Package Index (``PIP_AUDIT_VULNERABILITY_SERVICE=osv`` asks OSV). The exit status
is 1 if a package has a known vulnerability or could not be looked up, since an incomplete audit proves
nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.table import Table

from lana_ray.monitoring.progress import console, say

# Our own package is on no index.
OWN = "lana-ray"


def main() -> int:
    """Prints the table and returns the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:  # pip-audit failed before printing its result
        say(f"audit: {(done.stderr.strip() or 'pip-audit printed nothing').splitlines()[-1]}")
        return 1
    packages = [package for package in packages if package["name"] != OWN]
    unknown = {p["name"]: p["skip_reason"] for p in packages if "skip_reason" in p}
    rows = [(p, vulnerability) for p in packages for vulnerability in p.get("vulns", ())]
    if rows:
        console.print(_table(rows))
    for name, reason in unknown.items():
        say(f"not looked up: {name}: {reason}")
    affected = len({package["name"] for package, _ in rows})
    say(f"{len(packages) - len(unknown)} packages looked up, {affected} with a known vulnerability")
    return 1 if rows or unknown else 0


def _table(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    table = Table("package", "version", "vulnerability", "fixed in")
    for package, vulnerability in rows:
        names = ", ".join([vulnerability["id"], *vulnerability["aliases"]])
        table.add_row(
            package["name"], package["version"], names, ", ".join(vulnerability["fix_versions"]) or "-"
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
