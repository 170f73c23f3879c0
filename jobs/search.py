"""Runs the sweeps of both searches as a Ray job: ``lana-ray search`` for ``ray job submit``.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/search.py jobs/quickstart.yaml --set run.dir=/shared/runs/quickstart

Otherwise like ``accelerate.py``; it keeps what an earlier run in the same directory finished.
"""

import sys

from lana_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "search")
    main()
