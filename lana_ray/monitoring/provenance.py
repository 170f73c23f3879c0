"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import lana_ray

PACKAGES = (
    "lana-ray",
    "torch",
    "timm",
    "ray",
    "mlflow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "highspy",
)


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this package's checkout, ``-dirty`` where it was changed; its version elsewhere."""
    here = str(Path(lana_ray.__file__).parent)
    git = ("git", "-C", here)
    try:
        # A package installed somewhere below another checkout is not that checkout's.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        described = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        found = subprocess.run([*git, *described], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("lana-ray")
    return found.stdout.strip()
