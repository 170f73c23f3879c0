"""One YAML file says everything: a module for each part of what can be asked for, ``load.py`` reads it."""

from lana_ray.config.budgets import Budget, BudgetsConfig, CountBudget
from lana_ray.config.config import Config, RayConfig, RegistryConfig, RunConfig
from lana_ray.config.load import load_config
from lana_ray.config.networks import DataConfig, TeacherConfig, TrainConfig
from lana_ray.config.search import SearchConfig
from lana_ray.config.stages import FinetuneConfig, SelectConfig
from lana_ray.config.targets import MeasureConfig, Target

__all__ = [
    "Budget",
    "BudgetsConfig",
    "Config",
    "CountBudget",
    "DataConfig",
    "FinetuneConfig",
    "MeasureConfig",
    "RayConfig",
    "RegistryConfig",
    "RunConfig",
    "SearchConfig",
    "SelectConfig",
    "Target",
    "TeacherConfig",
    "TrainConfig",
    "load_config",
]
