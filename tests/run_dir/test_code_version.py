"""What code and which versions are part of the key of what they compute."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import lana_ray
from lana_ray.errors import UserError
from lana_ray.run_dir.code_version import (
    check_code,
    closure,
    code_version,
    installed_code,
    method_files,
    method_version,
    public_version,
)

ROOT = Path(lana_ray.__file__).parent
FILES = {
    "net.py": "import torch\nimport parts.block\nfrom .other import y\n\nmake = parts.block.x\n",
    "other.py": "y = 1\n",
    "parts/__init__.py": "",
    "parts/block.py": "from . import sizes\n\nx = sizes.width\n",
    "parts/sizes.py": "width = 7\n",
    "unused.py": "z = 1\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def version(folder: Path) -> str:
    return code_version(closure([folder / "net.py"], folder), folder)


def test_code_is_a_file_and_all_that_it_imports_from_its_folder(folder: Path) -> None:
    names = [str(file.relative_to(folder)) for file in closure([folder / "net.py"], folder)]
    assert names == ["net.py", "other.py", "parts/__init__.py", "parts/block.py", "parts/sizes.py"]
    left_out = closure([folder / "net.py"], folder, without=[folder / "parts" / "__init__.py"])
    assert [file.name for file in left_out] == ["net.py", "other.py"]


@pytest.mark.parametrize("name", ["net.py", "other.py", "parts/block.py", "parts/sizes.py"])
def test_a_change_of_code_is_another_version(folder: Path, name: str) -> None:
    before = version(folder)
    (folder / name).write_text(FILES[name] + "\nw = 2\n")
    assert version(folder) != before


def test_comments_docstrings_and_other_files_are_not(folder: Path) -> None:
    before = version(folder)
    (folder / "other.py").write_text('"""Says what it is."""\n\n# why\ny =  1\n')
    (folder / "unused.py").write_text("z = 2\n")
    assert version(folder) == before


def test_code_is_the_same_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for name, source in FILES.items():
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_text(source)
    assert version(folder) == version(other)


@pytest.fixture
def other_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed before the real one, as far as metadata tell."""
    metadata = tmp_path / "site" / "torch-99.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.1+cu999\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])


METHODS = (
    ("cluster.distill_worker", "spaces.layerwise"),
    ("scoring.score",),
    ("costs.sampler",),
    ("training.loop",),
    ("data.images",),
)


def test_another_torch_is_another_version_of_all_that_imports_it(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    compute = method_version.__wrapped__
    before = [version(folder), *(compute(*modules) for modules in METHODS)]
    assert public_version("torch") != "99.1"
    request.getfixturevalue("other_torch")
    assert public_version("torch") == "99.1"  # the build does not count
    after = [version(folder), *(compute(*modules) for modules in METHODS)]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_the_methods_of_stages_differ_and_are_of_modules_that_there_are() -> None:
    assert len({method_version(*modules) for modules in METHODS}) == len(METHODS)
    with pytest.raises(AssertionError, match="no such module"):
        method_version("distill.nowhere")


@pytest.mark.parametrize(
    ("modules", "computes"),
    [
        (METHODS[0], {"distill/step.py", "ops/mbconv.py", "ops/warmstart.py", "networks/layers.py"}),
        (METHODS[1], {"scoring/suffixes.py", "networks/layers.py"}),
        (
            METHODS[2],
            {"costs/timing.py", "deploy/runtimes/onnxruntime.py", "deploy/onnx.py", "ops/mbconv.py"},
        ),
        (METHODS[3], {"training/micro.py", "data/pixels.py"}),
        (METHODS[4], {"data/pixels.py", "data/splits.py"}),
    ],
)
def test_a_method_is_the_code_that_computes_and_not_what_carries(
    modules: tuple[str, ...], computes: set[str]
) -> None:
    names = {str(file.relative_to(ROOT)) for file in method_files(*modules)}
    assert names >= computes
    carries = {
        "run_dir/storage.py",
        "monitoring/progress.py",
        "workspace.py",
        "config/__init__.py",
        "config/distill.py",
    }
    assert not names & carries


def test_a_node_with_other_code_is_named_with_what_differs() -> None:
    check_code(installed_code())
    with pytest.raises(UserError, match=r"^node .+: torch, timm differs from the driver"):
        check_code(installed_code() | {"torch": "1", "timm": "1"})
