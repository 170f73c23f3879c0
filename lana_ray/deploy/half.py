"""Casts ONNX programs to half precision after they were traced and folded in float32.

A batch-norm of a trained network may have a variance that half precision cannot represent (above 65504), so
it must be folded before anything is cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

OnnxGraph: TypeAlias = Any  # onnx.GraphProto, of an optional extra

_TO_TYPE = {"Cast": "to", "RandomNormalLike": "dtype", "EyeLike": "dtype"}
_RESIZE_SCALES = 2
"""Position of the input that is float32 whatever the type of the resized tensor."""


def cast_onnx(program: bytes, dtype: torch.dtype) -> bytes:
    """Casts all tensors of a float32 ONNX program, including its input and output, to another type.

    Numbers beyond the type's range become its largest. Scale and shift of unfolded batch-norms absorb their
    statistics. Only the scales of ``Resize`` stay float32, as ONNX demands.
    """
    import onnx.inliner

    model = onnx.inliner.inline_local_functions(onnx.load_from_string(program))
    types = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}
    for graph in _graphs(model.graph):
        _absorb_statistics(graph)
        kept = {x.input[_RESIZE_SCALES] for x in graph.node if x.op_type == "Resize" and len(x.input) > 2}
        for tensor in _numbers(graph, kept):
            _cast(tensor, dtype, types[dtype])
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == _TO_TYPE.get(node.op_type) and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = types[dtype]
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor_type = value.type.tensor_type
            if tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in kept:
                tensor_type.elem_type = types[dtype]
    return bytes(model.SerializeToString())


def _graphs(graph: OnnxGraph) -> Iterator[OnnxGraph]:
    """Yields a graph and the graphs of its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(body)


def _numbers(graph: OnnxGraph, kept: set[str]) -> Iterator[Any]:
    """Yields the float32 tensors of a graph, except those named in ``kept``."""
    import onnx

    tensors = [tensor for tensor in graph.initializer if tensor.name not in kept]
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in kept:
            continue
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    yield from (tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT)


def _cast(tensor: Any, dtype: torch.dtype, data_type: int) -> None:
    cast = to_half(_values(tensor), dtype)
    name, dims = tensor.name, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, data_type
    tensor.dims.extend(dims)
    tensor.raw_data = cast.view(torch.int16).numpy().tobytes()


def to_half(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts numbers to another type; those beyond its range become its largest, infinities stay."""
    most = torch.finfo(dtype).max
    return torch.where(values.isinf(), values, values.clamp(-most, most)).to(dtype).contiguous()


def _values(tensor: Any) -> Tensor:
    import onnx

    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor), dtype=np.float32))


def _absorb_statistics(graph: OnnxGraph) -> None:
    """Changes the batch-norms of a graph to mean 0 and variance 1; scale and shift absorb the difference."""
    import onnx

    numbers = {tensor.name: tensor for tensor in graph.initializer}
    numbers |= {x.output[0]: a.t for x in graph.node for a in x.attribute if x.op_type == "Constant"}
    before = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[1:]}
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not numbers.keys() >= set(node.input[1:]):
            continue
        scale, shift, mean, variance = (_values(numbers[name]) for name in node.input[1:])
        epsilon = next((a for a in node.attribute if a.name == "epsilon"), None)
        factor = scale / torch.sqrt(variance + (1e-5 if epsilon is None else epsilon.f))
        absorbed = (factor, shift - mean * factor, torch.zeros_like(mean), torch.ones_like(variance))
        for position, values in enumerate(absorbed, 1):
            node.input[position] = f"{node.output[0]}_absorbed_{position}"
            graph.initializer.append(onnx.numpy_helper.from_array(values.numpy(), node.input[position]))
        if epsilon is not None:
            node.attribute.remove(epsilon)
        node.attribute.append(onnx.helper.make_attribute("epsilon", 0.0))
    used = {name for part in _graphs(graph) for node in part.node for name in node.input}
    for left in [t for t in graph.initializer if t.name in before - used]:
        graph.initializer.remove(left)
