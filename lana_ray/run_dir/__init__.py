"""What a run directory holds and how it is kept whole: files, digests, keys, the lease, states, hours."""
