"""Regressors that predict an architecture's cost on a target, and measures of their quality."""
