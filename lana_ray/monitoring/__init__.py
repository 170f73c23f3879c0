"""What people and logs are told: progress, secrets left out, versions, how a run ends."""
