"""Test suites that every operation, runtime, meter or search space must pass, including your own.

Subclass one in your tests, and set what it tests::

    from lana_ray.testing import OperationSuite

    class TestMine(OperationSuite):
        operations = ("mine_k3", "mine_k5")

The operations, runtimes, meters and spaces of this package pass the same suites.
"""

import pytest

# Makes failed assertions in the suites show values.
for _name in ("meters", "operations", "runtimes", "spaces"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")

from lana_ray.testing.meters import MeterSuite  # noqa: E402
from lana_ray.testing.operations import OperationSuite  # noqa: E402
from lana_ray.testing.runtimes import RuntimeSuite  # noqa: E402
from lana_ray.testing.spaces import SpaceSuite  # noqa: E402

__all__ = ["MeterSuite", "OperationSuite", "RuntimeSuite", "SpaceSuite"]
