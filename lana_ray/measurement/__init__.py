"""Costs of candidates and networks on their targets: asked of the cluster, kept in the run directory."""
