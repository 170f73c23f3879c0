"""Differentiable search with a latency term: LA-DNAS (arXiv 2001.06392)."""
