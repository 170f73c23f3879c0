"""Which errors inside a session are the registry's."""

from __future__ import annotations

from pathlib import Path

import pytest

from lana_ray.registry._session import session

from ..errors import refuses
from .students import register, student


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "run/teacher.safetensors"), ModuleNotFoundError("no onnxscript")],
)
def test_what_has_nothing_to_do_with_the_registry_stays_what_it_is(uri: str, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, session(uri):
        raise error
    assert raised.value is error


def test_a_disk_that_fails_the_registry_is_told_of_it(uri: str) -> None:
    register(uri)  # creates the experiment
    artifacts = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    artifacts.write_text("in the way")
    with refuses("unreachable", f"registry {uri}", str(artifacts)):
        register(uri, student("a"))
