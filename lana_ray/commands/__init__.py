"""Commands beside the stages: plan, doctor, verify."""
