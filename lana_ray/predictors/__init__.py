"""Regressors that predict what an architecture costs, of one device and from many, and how well they do."""
