"""Loads matplotlib whatever ``MPLBACKEND`` says: pictures are made without a backend.

A notebook names its own there, which the commands it starts inherit, in another Python too; matplotlib cannot
be imported if that lacks it.
"""

import os
import sys

try:
    import matplotlib
except ValueError:
    named = os.environ.pop("MPLBACKEND")
    for part in [name for name in sys.modules if name.startswith("matplotlib.")]:
        del sys.modules[part]  # left by attempts to import it
    import matplotlib

    os.environ["MPLBACKEND"] = named

__all__ = ["matplotlib"]
