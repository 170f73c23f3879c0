"""Scores: how much a single candidate changes the network's output or loss relative to the teacher."""
