"""Latency-aware network acceleration on Ray.

Give it a trained network, the hardware it is deployed on and a latency budget; it gives back, for every
target, a faster network whose measured latency keeps the budget, registered in MLflow.
"""

from typing import TYPE_CHECKING, Any

from lana_ray.cluster.account import complete_account
from lana_ray.config import Config, load_config
from lana_ray.errors import UserError

if TYPE_CHECKING:
    from lana_ray.pipeline import RunResult, accelerate

complete_account()  # before Ray is imported

__all__ = ["Config", "RunResult", "UserError", "accelerate", "load_config"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline, and with it torch and Ray, only for those who run it."""
    if name not in ("RunResult", "accelerate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lana_ray import pipeline

    return getattr(pipeline, name)
