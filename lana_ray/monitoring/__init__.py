"""Reporting to people and logs: progress without secrets, and how a run ends."""
