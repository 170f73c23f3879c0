"""One YAML file says everything: ``sections.py`` what can be asked for, ``load.py`` how it is read."""

from lana_ray.config.load import load_config
from lana_ray.config.sections import (
    Budget,
    BudgetsConfig,
    Config,
    CountBudget,
    DataConfig,
    FinetuneConfig,
    MeasureConfig,
    RayConfig,
    RegistryConfig,
    RunConfig,
    SearchConfig,
    SelectConfig,
    Target,
    TeacherConfig,
    TrainConfig,
)

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
