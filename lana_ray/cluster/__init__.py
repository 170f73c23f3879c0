"""All of Ray: connecting, nodes and what workers claim of them, leases, samplers, training, tasks, sweeps."""
