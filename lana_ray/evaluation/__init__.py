"""Losses and accuracies of networks, computed on the cluster and kept in the run directory."""
