"""Commands that are not stages: plan, doctor, verify."""
