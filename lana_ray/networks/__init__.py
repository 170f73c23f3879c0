"""Loads and identifies teachers, finds their layers, and does what all stages need to do to networks."""
