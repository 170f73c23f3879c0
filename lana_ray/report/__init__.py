"""Results for people: tables for the terminal and self-contained pages, made from the run directory alone."""

from lana_ray.report import backend  # noqa: F401  must precede all uses of matplotlib
from lana_ray.report.page import write_page
from lana_ray.report.plots import sampling_notes, write_fit_plots
from lana_ray.report.searches import (
    has_searches,
    lambda_table,
    repeated,
    searches_table,
    write_search_page,
    write_search_plots,
)
from lana_ray.report.table import fits_table, models_table, results_table

__all__ = [
    "fits_table",
    "has_searches",
    "lambda_table",
    "models_table",
    "repeated",
    "results_table",
    "sampling_notes",
    "searches_table",
    "write_fit_plots",
    "write_page",
    "write_search_page",
    "write_search_plots",
]
