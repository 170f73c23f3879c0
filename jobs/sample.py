"""Measures the cost tables of all targets as a Ray job: ``lana-ray sample`` for ``ray job submit``.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/sample.py jobs/quickstart.yaml --set run.dir=/shared/runs/quickstart

Otherwise like ``accelerate.py``; a later run in the same directory keeps what was measured.
"""

import sys

from lana_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "sample")
    main()
