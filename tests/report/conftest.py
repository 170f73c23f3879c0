"""Made-up run directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from lana_ray.report.page import write_page
from lana_ray.run_dir.storage import Storage

from .rundir import make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A finished run with its report; not to be changed."""
    storage = make_run(str(tmp_path_factory.mktemp("finished")))
    write_page(storage)
    return storage


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """A small run on one target, still without a report, for one test alone."""
    return make_run(str(tmp_path), layers=3, targets=("ort-1t",))
