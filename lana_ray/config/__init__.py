"""Defines the settings of a run, one module per block of the YAML file; ``load.py`` reads the file."""

from lana_ray.config.budgets import Budget, BudgetsConfig, CountBudget, LatencyBudget
from lana_ray.config.command import CommandConfig
from lana_ray.config.config import Config
from lana_ray.config.data import DataConfig
from lana_ray.config.finetune import FinetuneConfig, TrainConfig
from lana_ray.config.load import load_config
from lana_ray.config.ray import RayConfig
from lana_ray.config.registry import RegistryConfig
from lana_ray.config.run import RunConfig
from lana_ray.config.search import SearchConfig
from lana_ray.config.select import SelectConfig
from lana_ray.config.targets import MeasureConfig, Target
from lana_ray.config.teacher import TeacherConfig

__all__ = [
    "Budget",
    "BudgetsConfig",
    "CommandConfig",
    "Config",
    "CountBudget",
    "DataConfig",
    "FinetuneConfig",
    "LatencyBudget",
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
