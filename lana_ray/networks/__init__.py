"""Teachers: loading and identity, their layers, and the operations on networks that all stages share."""
