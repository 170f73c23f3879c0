"""Versions and commit of the software that made a result."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Iterable
from pathlib import Path

import lana_ray

_PACKAGES = ("lana-ray", "torch", "timm", "ray", "mlflow", "highspy")


def versions(runtimes: Iterable[str]) -> dict[str, str]:
    """Returns the installed versions of the packages that a result depends on.

    Args:
        runtimes: the packages of runtimes.
    """
    installed = {}
    for package in dict.fromkeys((*_PACKAGES, *runtimes)):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str:
    """Returns the commit of this package's checkout, with ``-dirty`` if it was changed, else its version."""
    here = str(Path(lana_ray.__file__).parent)
    git = ("git", "-C", here)
    try:
        # A package that is installed somewhere below another checkout does not belong to that checkout.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        described = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        output = subprocess.run([*git, *described], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("lana-ray")
    return output.stdout.strip()
