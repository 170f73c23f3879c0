"""Results for people: tables for the terminal and self-contained pages, made from the run directory alone."""

from lana_ray.report import backend  # noqa: F401  must precede all uses of matplotlib
