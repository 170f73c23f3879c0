"""Scores: how far a candidate alone moves the network from the teacher."""
