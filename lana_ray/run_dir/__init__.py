"""The run directory: its files, digests and keys, the lease that protects it, states for resuming, hours."""
