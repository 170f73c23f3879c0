"""Imports matplotlib regardless of ``MPLBACKEND``, since our pictures need no backend.

A notebook sets it to its own backend. Commands that it starts inherit the variable, and matplotlib cannot be
imported if their Python lacks that backend.
"""

import os
import sys

try:
    import matplotlib
except ValueError:
    named = os.environ.pop("MPLBACKEND")
    for part in [name for name in sys.modules if name.startswith("matplotlib.")]:
        del sys.modules[part]  # left by the failed import
    import matplotlib

    os.environ["MPLBACKEND"] = named

__all__ = ["matplotlib"]
