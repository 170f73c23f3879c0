"""Runs on the device of ``board.yaml``: times the ONNX program on its standard input, one line a call."""

import platform
import sys
import time

import numpy as np
import onnxruntime

if sys.argv[1:] == ["--version"]:
    print(f"{platform.node()} {platform.machine()}, onnxruntime {onnxruntime.__version__}")
    sys.exit()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), options)
rng = np.random.default_rng(0)
feed = {each.name: rng.random(each.shape, np.float32) for each in session.get_inputs()}
for number in range(160):
    start = time.perf_counter()
    session.run(None, feed)
    # The first calls warm up.
    if number >= 10:
        print(1e3 * (time.perf_counter() - start))
