"""Narrower copies of a layer: traces its channels and removes the least important ones."""
