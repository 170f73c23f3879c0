"""Reporting to people and logs: progress without secrets, versions, and how a run ends."""
