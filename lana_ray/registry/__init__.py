"""Students in MLflow's model registry: one registered model per target, one version per student.

Only this package uses MLflow. A version is a PyTorch program (``.pt2``) with a free batch dimension, its
signature, an input example and small files; plain torch and MLflow can load it. Its teacher is stored in the
same form, but not registered, so that users of the version can compare the two. MLflow takes seconds to
import, so functions import it on first use.

Every function with a ``tracking_uri`` raises UserError if the registry there is unreachable or refuses. With
sqlite, artifacts are in the folder ``mlartifacts`` next to the database. A ``prefix`` begins the names of
registered models, and is the name of the experiment.

Read ``_folder.py`` for the files of a model and ``_program.py`` for loading its program; ``_publish.py`` and
``_tracking.py`` for what is logged about a student, a pipeline run and a sweep; ``_versions.py`` for finding
versions and choosing the champion; ``_session.py`` for connecting to MLflow.
"""

from lana_ray.registry._folder import ONNX_FILE, VERIFICATION_FILE, Model, download, load
from lana_ray.registry._publish import Student, end_abandoned, register
from lana_ray.registry._session import default_tracking_uri
from lana_ray.registry._tracking import DataSet, Part, Pipeline, log_trials, track
from lana_ray.registry._versions import Version, find, list_models, promote

__all__ = [
    "ONNX_FILE",
    "VERIFICATION_FILE",
    "DataSet",
    "Model",
    "Part",
    "Pipeline",
    "Student",
    "Version",
    "default_tracking_uri",
    "download",
    "end_abandoned",
    "find",
    "list_models",
    "load",
    "log_trials",
    "promote",
    "register",
    "track",
]
