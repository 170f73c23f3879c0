"""Narrower copies of a layer: its channels traced, and the least important of them left out."""
