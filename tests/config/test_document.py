"""The printed configuration names every setting, and is a configuration itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lana_ray import cli
from lana_ray.config import Config, SearchConfig, load_config
from lana_ray.config.document import documented
from lana_ray.config.messages import sections
from lana_ray.config.reader import read
from lana_ray.config.section import Section


def _of(section: type[Section], seen: set[type[Section]]) -> Iterator[type[Section]]:
    if section in seen:
        return
    seen.add(section)
    yield section
    for field in section.model_fields.values():
        for inner in sections(field.annotation):
            yield from _of(inner, seen)


SECTIONS = [s for s in _of(Config, set()) if not s.__name__.endswith("Budget")]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_and_setting_is_explained(section: type[Section]) -> None:
    assert (section.__doc__ or "").strip().endswith(".")
    blocks = {name for name, f in section.model_fields.items() if any(sections(f.annotation))}
    plain = section.model_fields.keys() - blocks
    unexplained = [name for name in plain if not (section.model_fields[name].description or "").endswith(".")]
    assert unexplained == []
    text = documented()
    missing = [name for name in section.model_fields if f"{name}:" not in text]
    assert missing == []


def test_what_is_printed_reads_back_as_the_defaults() -> None:
    config = load_config(read(documented()))
    assert config.search == SearchConfig()
    for name in ("ray", "pool", "distill", "score", "select", "finetune", "registry"):
        assert getattr(config, name) == Config.model_fields[name].default
    assert [target.name for target in config.targets] == ["edge"]


def test_a_block_that_is_off_reads_back_once_its_comment_is_removed() -> None:
    lines = documented().splitlines()
    first = lines.index("  # cells:")
    on = [line.replace("# ", "", 1) if first <= place else line for place, line in enumerate(lines)]
    last = next(place for place in range(first, len(lines)) if lines[place].startswith("  # Cost to"))
    config = load_config(read("\n".join([*on[:last], *lines[last:]])))
    assert config.search.cells is not None
    assert config.search.cells.space == "darts"


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["lana-ray", "config"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert capsys.readouterr().out == documented()
