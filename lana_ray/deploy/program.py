"""Exports networks as PyTorch programs: flat lists of operators and tensors, without the networks' code.

``deployed`` folds a network before it is exported, as any program.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lana_ray.errors import Unsupported, first_line, is_fault
from lana_ray.networks.layers import evaluating, replace

_aten = torch.ops.aten
_CONVOLUTIONS = {
    overload
    for convolution in (_aten.conv1d, _aten.conv2d, _aten.conv3d)
    for overload in (convolution.default, convolution.padding)
}


@runtime_checkable
class Foldable(Protocol):
    """A module that is trained in another form than it is deployed in, such as RepVGG's stages."""

    def folded(self) -> nn.Module:
        """Returns a smaller module with the same outputs in evaluation mode; leaves this one unchanged."""


def deployed(network: nn.Module) -> nn.Module:
    """Returns a copy with every foldable module folded; the network itself if there is none."""
    folded = {name: m.folded() for name, m in network.named_modules() if isinstance(m, Foldable)}
    return replace(network, folded) if folded else network


def to_program(network: nn.Module, example: Tensor, *, dynamic_batch: bool) -> fx.GraphModule:
    """Exports ``network`` for inference, in eval mode and folded (``deployed``), and restores its modes.

    Two changes make a call of the program faster than one of the network: batch-norms are folded into the
    convolutions before them, as every other runtime does; and parameters become attributes of the program
    itself, because looking them up along module paths, as torch.export leaves them, takes longer than the
    smallest operators. EfficientNet-Lite0 at 32 pixels, batch 1, takes 0.54 of its time in eager mode; an
    exported program without these changes takes 0.86.

    Args:
        network: maps one tensor to one tensor; the program shares tensors with it as far as possible.
        example: an input, shape [N, ...], on the network's device; N may change with ``dynamic_batch``.

    Raises:
        Unsupported: torch.export cannot express the network.
    """
    network = deployed(network)
    shapes = None
    if dynamic_batch:
        # torch.export would treat a batch of one as a constant.
        example = torch.cat([example[:1]] * 2)
        shapes = ({0: torch.export.Dim("batch")},)
    with evaluating(network), torch.no_grad(), _exporting(network):
        exported = torch.export.export(network, (example,), dynamic_shapes=shapes)
        program: Any = exported.module(check_guards=False)
    return finished(program)


def finished(program: fx.GraphModule) -> fx.GraphModule:
    """Folds and flattens a program of torch.export in place, and returns it.

    The result runs in any memory layout: views of tensors that are not contiguous become copies.
    """
    _fold_batch_norms(program)
    _absorb_statistics(program)
    for node in program.graph.find_nodes(op="call_function", target=_aten.view.default):
        node.target = _aten.reshape.default
    return _flattened(program)


def _fold_batch_norms(program: fx.GraphModule) -> None:
    graph = program.graph
    for norm in graph.find_nodes(op="call_function", target=_aten.batch_norm.default):
        convolution, scale, shift, mean, variance, training, _, epsilon = norm.args[:8]
        if training or convolution.target not in _CONVOLUTIONS or len(convolution.users) > 1:
            continue
        images, weight, *more = convolution.args
        bias, *rest = more or [None]
        constants = _constants(program, weight, bias, mean, variance, scale, shift)
        if constants is None:
            continue
        w, b, m, v, s, t = constants
        folded = fuse_conv_bn_weights(w, b, m, v, epsilon, s, t)
        names = (f"{convolution.name}_folded_{kind}" for kind in ("weight", "bias"))
        parts = _add(program, convolution, dict(zip(names, folded, strict=True)))
        convolution.args = (images, *parts, *rest)
        norm.replace_all_uses_with(convolution)
        graph.erase_node(norm)
    graph.eliminate_dead_code()


def _absorb_statistics(program: fx.GraphModule) -> None:
    """Gives unfolded batch-norms mean 0 and variance 1: half precision lacks variances above 65504."""
    graph = program.graph
    for norm in graph.find_nodes(op="call_function", target=_aten.batch_norm.default):
        scale, shift, mean, variance, training, _, epsilon = norm.args[1:8]
        constants = _constants(program, scale, shift, mean, variance)
        if training or not epsilon or constants is None:
            continue
        s, t, m, v = constants
        factor = (1 if s is None else s.detach()) / torch.sqrt(v + epsilon)
        moved = (0 if t is None else t.detach()) - m * factor
        absorbed = {"scale": factor, "shift": moved, "mean": torch.zeros_like(m), "var": torch.ones_like(v)}
        parts = _add(program, norm, {f"{norm.name}_absorbed_{kind}": x for kind, x in absorbed.items()})
        norm.args = (norm.args[0], *parts, training, norm.args[6], 0.0, *norm.args[8:])
    graph.eliminate_dead_code()


def _constants(program: fx.GraphModule, *nodes: Any) -> list[Any] | None:
    """Returns the tensors of nodes (None for none); None if one is computed during the call.

    Weight standardisation computes its weights during the call.
    """
    if any(node is not None and node.op != "get_attr" for node in nodes):
        return None
    return [node and attrgetter(node.target)(program) for node in nodes]


def _add(program: fx.GraphModule, before: fx.Node, tensors: Mapping[str, Tensor]) -> list[fx.Node]:
    """Adds tensors to a program as parameters, by name, and returns nodes that read them."""
    for name, tensor in tensors.items():
        program.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
    with program.graph.inserting_before(before):
        return [program.graph.get_attr(name) for name in tensors]


def _flattened(program: fx.GraphModule) -> fx.GraphModule:
    """Returns the same graph on a module that holds only the tensors it uses, under names without dots."""
    names: dict[str, str] = {}
    used = {}
    for node in program.graph.find_nodes(op="get_attr"):
        value = attrgetter(node.target)(program)
        node.target = names.setdefault(node.target, node.name)  # unique in the graph
        used[node.target] = value
    return fx.GraphModule(used, program.graph, class_name="Program")


def anonymise_program(path: str | Path) -> torch.export.ExportedProgram:
    """Removes the stack traces of the exporting machine from a saved ``.pt2`` program, and returns it.

    Call it only with files that this process wrote: loading a foreign program can execute its pickles.
    """
    program = torch.export.load(path)
    for module in program.graph_module.modules():
        graph: Any = getattr(module, "graph", None)
        for node in graph.nodes if graph is not None else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
    return program


@contextlib.contextmanager
def _exporting(network: nn.Module) -> Iterator[None]:
    before = logging.root.manager.disable
    # If the export fails, torch writes the full graph to standard error.
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as error:  # torch.export has no common base class for its errors
        if is_fault(error):
            raise
        reason = first_line(error)
        raise Unsupported(
            "refused",
            f"{type(network).__name__}: torch.export cannot express it ({type(error).__name__}: {reason}); "
            f"change its forward{_place(error)}",
        ) from error
    finally:
        logging.disable(before)


def _place(error: Exception) -> str:
    """Returns the last place in the user's code on an error's traceback, as `` at FILE:LINE``, or ``""``."""
    ours = (Path(torch.__file__).parent, Path(__file__).parents[1])
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    theirs = [f"{file}:{line}" for file, line in frames if not any(file.is_relative_to(o) for o in ours)]
    standard = sysconfig.get_paths()["stdlib"]
    theirs = [place for place in theirs if not place.startswith((standard, "<"))]
    return f" at {theirs[-1]}" if theirs else ""


def portable(program: nn.Module | bytes) -> nn.Module | bytes:
    """The same program without the tracer of torch.export, which cannot be pickled."""
    if not isinstance(program, fx.GraphModule):
        return program
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    return fx.GraphModule(program, graph)
