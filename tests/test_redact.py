"""No password is written or said."""

from __future__ import annotations

from pathlib import Path

import pytest

from lana_ray import pipeline
from lana_ray.config import load_config
from lana_ray.redact import without_passwords
from lana_ray.storage import Storage

from .runs import settings

CANARY = "c4nary"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{CANARY}@host:5000/x", "http://***@host:5000/x"),
        (f"at 'postgresql://me:a/{CANARY}@b@host/db'.", "at 'postgresql://***@host/db'."),
        (f"https://{CANARY}@host and http://:{CANARY}@b", "https://***@host and http://***@b"),
        (
            f"postgresql://host/db?password={CANARY}&sslmode=on",
            "postgresql://host/db?password=***&sslmode=on",
        ),
        ("s3://bucket/a@b sqlite:////data/x@y.db http://host:5000", None),
    ],
)
def test_passwords_are_left_out_and_nothing_else(text: str, shown: str | None) -> None:
    assert without_passwords(text) == (text if shown is None else shown)


def test_neither_run_yaml_nor_the_log_holds_a_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        uri = f"http://me:{CANARY}{number}@host{number}:5000"
        pipeline._claim(
            Storage(str(tmp_path)), load_config(settings(tmp_path, registry={"tracking_uri": uri}))
        )
        written = (tmp_path / "run.yaml").read_text()
        assert f"tracking_uri: http://host{number}:5000" in written
        assert CANARY not in written
    said = capsys.readouterr().out
    assert "registry.tracking_uri 'http://host1:5000' → 'http://host2:5000'" in said
    assert CANARY not in said
