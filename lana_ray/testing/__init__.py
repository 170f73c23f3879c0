"""What an operation, a runtime, a meter or a space of one's own must hold to: suites for pytest.

Subclass one in your tests, and say what it is for:

    from lana_ray.testing import OperationSuite

    class TestMine(OperationSuite):
        operations = ("mine_k3", "mine_k5")

The operations, runtimes, meters and spaces of this package pass the same suites.
"""

import pytest

for _name in ("meters", "operations", "runtimes", "spaces"):  # so that failures show values
    pytest.register_assert_rewrite(f"{__name__}.{_name}")

from lana_ray.testing.meters import MeterSuite  # noqa: E402
from lana_ray.testing.operations import OperationSuite  # noqa: E402
from lana_ray.testing.runtimes import RuntimeSuite  # noqa: E402
from lana_ray.testing.spaces import SpaceSuite  # noqa: E402

__all__ = ["MeterSuite", "OperationSuite", "RuntimeSuite", "SpaceSuite"]
