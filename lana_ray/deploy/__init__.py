"""Exports networks as portable programs: ONNX for runtimes, flat PyTorch for environments with only torch."""

from lana_ray.deploy.onnx import INPUT_NAME, OUTPUT_NAME, to_onnx
from lana_ray.deploy.program import anonymise_program, deployed, to_program

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "anonymise_program", "deployed", "to_onnx", "to_program"]
