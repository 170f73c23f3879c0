"""Everything that uses Ray: connecting, nodes, resource claims, leases, samplers, training, tasks, sweeps."""
