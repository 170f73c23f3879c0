"""Costs of candidates and networks on targets, measured on the cluster and kept in the run directory."""
