"""Losses and accuracies of whole networks: computed on the cluster, kept in the run directory."""
