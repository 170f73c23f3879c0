"""Results for people: tables for the terminal and self-contained pages, made from the run directory alone.

Imports matplotlib regardless of ``MPLBACKEND``, since our pictures need no backend. A notebook sets it to its
own one; commands that it starts inherit the variable, and their Python may lack that backend.
"""

import os
import sys

try:
    import matplotlib
except ValueError:
    named = os.environ.pop("MPLBACKEND")
    for part in [name for name in sys.modules if name.startswith("matplotlib.")]:
        del sys.modules[part]  # left by the failed import
    import matplotlib  # noqa: F401

    os.environ["MPLBACKEND"] = named
