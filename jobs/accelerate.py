"""Runs everything as a Ray job: ``lana-ray run`` for ``ray job submit``.

From the root of a checkout, with the address of a cluster's dashboard (``ray dashboard CLUSTER.yaml``
forwards it to this machine) and its authentication token in ``~/.ray/auth_token``:

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/accelerate.py jobs/quickstart.yaml --set run.dir=/shared/runs/quickstart

The working directory is a copy that the cluster discards: set ``run.dir`` to a shared folder or a bucket that
outlives the job and is visible to every machine. The arguments are those of ``lana-ray run``; relative paths
in ``--set`` are relative to the working directory. Targets are named after the ``lana.target`` labels of the
cluster's machines; a single machine without labels serves any target.
"""

import sys

from lana_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
