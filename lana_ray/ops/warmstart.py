"""Warm start of distillation: copies what corresponds in the layer and solves the rest by least squares.

``warm_start`` takes these steps:

1. If the candidate's convolutions correspond to the layer's own, their overlap is copied: the hidden
   channels that matter most (variance on the batch times the squared norm of the weights that read
   them), the same ones in every convolution, kernels centred. An inverted residual also initialises a
   bottleneck (the depthwise kernel on the diagonal of the dense or grouped one) and, with its first two
   convolutions merged as if there were no activation between them, Fused-MBConv and the families that
   stack two convolutions.
2. The last convolution is solved by ridge regression from its input to the layer's output (minus the
   output of the candidate's shortcuts), towards the copied weights if there are any; the last
   batch-norm's γ and β give the output the solution's standard deviation and the teacher's mean.
   If the input is too large for that (over 4096 values for one output), only γ and β are set. An
   activation after it is not taken into account.
3. Every batch-norm's running statistics become those of the batch.

Of parallel branches (``Sum``: RepVGG's, a shortcut with a convolution) only the main one is initialised
like this; the batch-norms of the others get γ and β of zero. A candidate that is not a chain of
convolutions with batch-norms, such as split attention, skips step 1, and is left unchanged if the last
batch-norm is not simply added to its output, as in the identity. Linear layers, as in ``vit``, break the
chain too: copies next to them start worse than none. The paper starts at random (LANA, arXiv 2107.10624);
with γ as drawn, the candidate's output cannot reach the teacher's scale in a short distillation.

``pruned``, which is made from the layer, starts as the layer without the channels that matter least by
the measure of step 1. Step 2 then solves every convolution and linear layer that reads hidden channels,
one after another, each towards its output in the layer, so that activations and attention may follow.

A candidate without batch-norms, such as ``vit`` on tokens, has only step 2, for its last linear layer if
that is simply added to its output. A candidate for a layer of another layout is initialised inside its
permutations, from a layer with the same permutations. Measurements: ``jobs/RESULTS.md``, "Warm start".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.networks.layers import Layer, batch_statistics
from lana_ray.networks.layouts import Rearranged
from lana_ray.networks.padding import PaddedConv2d
from lana_ray.ops.blocks import Sum
from lana_ray.ops.pruning.channels import entries, hidden_channels, others, without
from lana_ray.ops.pruning.pruned import kept_units, weakest
from lana_ray.ops.pruning.trace import Axis

# Relative to the features' mean variance; values from .01 to 1 differ little.
_RIDGE = 0.1
# Above it the normal equations cost more than the steps they save.
_MOST_FEATURES = 4096
# Numbers unfolded at a time.
_CHUNK = 1 << 22

_Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


@torch.no_grad()
def warm_start(
    candidate: nn.Module, layer: Layer, teacher: nn.Module, inputs: Tensor, outputs: Tensor
) -> None:
    """Initialises a candidate for distillation, in place. The module says how.

    Args:
        candidate: in any mode, which it keeps.
        teacher: the layer's own module in evaluation mode, left unchanged.
        inputs: the layer's inputs, shape [N, *layer.input_shape]; 64 images suffice, more help if images
            are small.
        outputs: the teacher's answers, shape [N, *layer.output_shape].
    """
    if isinstance(candidate, Rearranged):
        turned = Rearranged(teacher, layer.usual.layout)
        warm_start(
            candidate.inner, layer.usual, turned, candidate.to_inner(inputs), candidate.to_inner(outputs)
        )
        return
    counts = kept_units(candidate)
    if counts is not None:
        _start_pruned(candidate, counts, layer, teacher, inputs)
        return
    pairs = _conv_norm_pairs(candidate)
    if not pairs:
        _start_linear(candidate, inputs, outputs)
        return
    mixed = any(isinstance(part, nn.Linear) for part in candidate.modules())
    chain = not mixed and _is_chain([conv for conv, _ in pairs], layer)
    conv, norm = pairs[-1]
    if conv.groups > 1 or not _is_centred(conv) or not (chain or _is_added(candidate, norm, inputs)):
        return
    if chain:
        for part in _aside(candidate):
            if isinstance(part, nn.BatchNorm2d):
                part.weight.zero_()
                part.bias.zero_()
    inherited = chain and _inherit(pairs, teacher, layer, inputs)
    with batch_statistics(candidate):
        (features,) = _what_they_read(candidate, inputs, [conv])
        shortcuts = _answer(candidate, inputs, norm, 0)
    _solve(conv, norm, features, outputs - shortcuts, inherited)
    _take_statistics(candidate, inputs)


def _start_pruned(
    candidate: nn.Module, counts: Sequence[int], layer: Layer, teacher: nn.Module, inputs: Tensor
) -> None:
    hidden = hidden_channels(teacher, layer)
    readers = {axis.module for dimension in hidden for axis in dimension if axis.reads}
    parts = {path: part for path, part in teacher.named_modules() if path in readers}
    read = dict(zip(parts, _what_they_read(teacher, inputs, list(parts.values())), strict=True))
    variances = {path: _as_image(part, read[path]).var((0, 2, 3)) for path, part in parts.items()}
    gone = entries(weakest(teacher, layer, counts, variances))
    candidate.load_state_dict(without(teacher, gone).state_dict())

    norms = dict(_conv_norm_pairs(candidate))
    names = {part: path for path, part in candidate.named_modules()}
    for path, own in parts.items():
        part: Any = candidate.get_submodule(path)
        if not _is_plain(part):
            continue
        norm = norms.get(part)
        target = _as_image(own, own(read[path]))
        if norm is not None:
            target = _normalised(target, teacher.get_submodule(names[norm]))
        missing = gone.get(Axis(path, "weight", 0), torch.tensor([], dtype=torch.int64))
        target = target[:, others(missing, target.shape[1]).to(target.device)]
        with batch_statistics(candidate):
            (features,) = _what_they_read(candidate, inputs, [part])
        if norm is not None:
            _solve(part, norm, features, target, True)
        else:
            _solve_alone(part, features, target, True)
    _take_statistics(candidate, inputs)


def _as_image(part: nn.Module, x: Tensor) -> Tensor:
    """Returns a convolution's or linear layer's input or output as [N, C, H, W]; tokens lie along H."""
    return x if isinstance(part, nn.Conv2d) else x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)[..., None]


def _is_plain(part: nn.Module) -> bool:
    if not isinstance(part, nn.Conv2d):
        return True
    return part.groups == 1 and _is_centred(part) and part.padding == tuple(k // 2 for k in part.kernel_size)


def _normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Applies a batch-norm to ``x`` without the activation that timm's batch-norms contain."""
    assert isinstance(norm, nn.BatchNorm2d)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _conv_norm_pairs(module: nn.Module) -> list[_Pair]:
    """Lists each convolution followed by a batch-norm with parameters and running statistics, in order.

    Of parallel branches only the main one is listed.
    """
    aside = _aside(module)
    path = (part for part in module.modules() if part not in aside)
    parts = [part for part in path if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    return [
        (conv, norm)
        for conv, norm in itertools.pairwise(parts)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        if norm.affine and norm.track_running_stats
    ]


def _aside(module: nn.Module) -> set[nn.Module]:
    """Returns the modules in all branches but the main one of every sum."""
    sums = [part for part in module.modules() if isinstance(part, Sum)]
    return {part for branches in sums for part in branches.others.modules()}


def _is_chain(convs: Sequence[nn.Conv2d], layer: Layer) -> bool:
    """Returns whether each convolution reads the one before, from the layer's input to its output.

    Grouped convolutions must keep the number of channels; every kernel must be square, of odd size.
    """
    sizes = [layer.in_channels, *(conv.out_channels for conv in convs)]
    stride = 1
    for conv, before in zip(convs, sizes, strict=False):
        stride *= conv.stride[0]
        if not _is_centred(conv) or conv.in_channels != before:
            return False
        if conv.groups > 1 and conv.out_channels != before:
            return False
    return bool(convs) and sizes[-1] == layer.out_channels and stride == layer.stride


def _is_centred(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    return height == width and height % 2 == 1 and conv.dilation == (1, 1)


def _is_added(module: nn.Module, part: nn.Module, x: Tensor) -> bool:
    """Returns whether the module's output is the part's output, or a sum that contains it."""
    with batch_statistics(module):
        difference = _answer(module, x, part, 1) - _answer(module, x, part, 0)
    return torch.allclose(difference, torch.ones_like(difference), atol=1e-4)


def _answer(module: nn.Module, x: Tensor, part: nn.Module, value: float) -> Tensor:
    """Returns the module's output for ``x`` with the part's every output replaced by ``value``."""
    handle = part.register_forward_hook(lambda _module, _args, output: torch.full_like(output, value))
    try:
        answer: Tensor = module(x)
    finally:
        handle.remove()
    return answer


def _what_they_read(module: nn.Module, x: Tensor, parts: Sequence[nn.Module]) -> list[Tensor]:
    """Returns the inputs of the parts while the module runs on ``x``."""
    seen: dict[nn.Module, Tensor] = {}
    handles = [p.register_forward_pre_hook(lambda at, args: seen.update({at: args[0]})) for p in parts]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[part] for part in parts]


@dataclass(frozen=True)
class _Stage:
    """A convolution to copy: weight [out, in, k, k], or [out, 1, k, k] if depthwise; γ and β [out]."""

    weight: Tensor
    depthwise: bool
    gamma: Tensor
    beta: Tensor


def _inherit(pairs: Sequence[_Pair], teacher: nn.Module, layer: Layer, inputs: Tensor) -> bool:
    """Copies the overlap; returns False, with nothing changed, if the structures do not correspond."""
    own = _conv_norm_pairs(teacher)
    convs = [conv for conv, _ in own]
    if not _is_chain(convs, layer) or any(conv.groups not in (1, conv.out_channels) for conv in convs):
        return False
    stages = [_Stage(conv.weight, conv.groups > 1, norm.weight, norm.bias) for conv, norm in own]
    variances = [read.var((0, 2, 3)) for read in _what_they_read(teacher, inputs, convs)]
    if len(stages) == len(pairs) + 1 and stages[1].depthwise and convs[0].kernel_size == (1, 1):
        stages[:2] = [_merge(own[0], stages[1])]
        del variances[1]
    if len(stages) != len(pairs):
        return False
    if any(conv.groups > 1 and not stage.depthwise for (conv, _), stage in zip(pairs, stages, strict=True)):
        return False

    written = torch.arange(layer.out_channels, device=inputs.device)
    for position in reversed(range(len(stages))):
        stage = stages[position]
        if position == 0:
            read = torch.arange(layer.in_channels, device=inputs.device)
        elif stage.depthwise:
            read = written
        else:
            importance = variances[position] * stage.weight.square().sum((0, 2, 3))
            count = min(pairs[position - 1][0].out_channels, len(importance))
            read = importance.topk(count).indices.sort().values
        _place(*pairs[position], stage, written, read)
        written = read
    return True


def _merge(pointwise: _Pair, depthwise: _Stage) -> _Stage:
    """Merges a 1x1 convolution, its batch-norm and the depthwise one after it into a dense convolution."""
    conv, norm = pointwise
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = depthwise.weight * (conv.weight * scale[:, None, None, None])
    return _Stage(weight, False, depthwise.gamma, depthwise.beta)


def _place(conv: nn.Conv2d, norm: nn.BatchNorm2d, stage: _Stage, written: Tensor, read: Tensor) -> None:
    """Copies the stage's channels ``written``, with weights for ``read``, to the front of conv and norm."""
    weight = stage.weight[written]
    if stage.depthwise:
        # Each channel reads itself, wherever it is in its group.
        inside = torch.searchsorted(read, written) % conv.weight.shape[1]
        weight = weight * F.one_hot(inside, conv.weight.shape[1])[:, :, None, None]
    else:
        weight = weight[:, read]
    grow = conv.kernel_size[0] - weight.shape[-1]
    # A negative padding crops.
    weight = F.pad(weight, [grow // 2] * 4)
    conv.weight[: len(written)] = 0
    conv.weight[: len(written), : weight.shape[1]] = weight
    norm.weight[: len(written)] = stage.gamma[written]
    norm.bias[: len(written)] = stage.beta[written]


def _solve(conv: nn.Conv2d, norm: nn.BatchNorm2d, features: Tensor, target: Tensor, inherited: bool) -> None:
    """Sets conv and norm so that they map ``features`` as near the target as possible."""
    norm.bias.copy_(target.mean((0, 2, 3)))
    if conv.weight[0].numel() > _MOST_FEATURES:
        norm.weight.copy_(target.std((0, 2, 3)))
        return
    covariance, cross = _covariances(conv, features, target)
    weight = conv.weight.flatten(1).double()
    towards = weight * (norm.weight / _spread(weight, covariance))[:, None] if inherited else None
    solved = _ridge(covariance, cross, towards)
    norm.weight.copy_(_spread(solved, covariance))
    # Batch-norm removes the scale of the weights, so they get an initialisation's, which suits Adam.
    size = (3 * solved.square().sum(1, keepdim=True)).sqrt().clamp_min(1e-12)
    conv.weight.copy_((solved / size).reshape(conv.weight.shape))


def _solve_alone(part: nn.Conv2d | nn.Linear, features: Tensor, target: Tensor, inherited: bool) -> None:
    """Sets a part without batch-norm so that it maps its input ``features`` as near the target as it can."""
    if part.weight[0].numel() <= _MOST_FEATURES:
        covariance, cross = _covariances(part, _as_image(part, features), target)
        solved = _ridge(covariance, cross, part.weight.flatten(1).double() if inherited else None)
        part.weight.copy_(solved.reshape(part.weight.shape))
    if part.bias is not None:
        part.bias += (target - _as_image(part, part(features))).mean((0, 2, 3))


def _ridge(covariance: Tensor, cross: Tensor, towards: Tensor | None) -> Tensor:
    """Returns the weights [c, m] that fit a target best, kept near ``towards`` or else small."""
    ridge = _RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    if towards is not None:
        cross = cross + ridge * towards
    regular = covariance.clone()
    regular.diagonal().add_(ridge)
    return torch.linalg.solve(regular, cross.T).T


def _covariances(conv: nn.Conv2d | nn.Linear, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the covariance of each output's inputs, [m, m], and of the target with them, [c, m]."""
    m, c = conv.weight[0].numel(), target.shape[1]
    products = torch.zeros(m + c, m + c, dtype=torch.float64, device=features.device)
    sums = products[0].clone()
    images = max(1, _CHUNK // (m * target[0, 0].numel()))
    kernel, stride = (conv.kernel_size, conv.stride) if isinstance(conv, nn.Conv2d) else ((1, 1), 1)
    padding = (kernel[0] // 2, kernel[1] // 2)
    if isinstance(conv, PaddedConv2d):
        features, padding = conv.surrounded(features), (0, 0)
    for some, answers in zip(torch.split(features, images), torch.split(target, images), strict=True):
        columns = F.unfold(some, kernel, padding=padding, stride=stride)
        rows = torch.cat([columns, answers.flatten(2)], 1).transpose(1, 2).flatten(0, 1).double()
        products += rows.T @ rows
        sums += rows.sum(0)
    mean = sums / target[:, 0].numel()
    covariance = products / target[:, 0].numel() - mean[:, None] * mean
    return covariance[:m, :m].contiguous(), covariance[m:, :m]


def _start_linear(candidate: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Solves the last linear layer if its output is added to the candidate's."""
    last = next((part for part in reversed([*candidate.modules()]) if isinstance(part, nn.Linear)), None)
    if last is None or not _is_added(candidate, last, inputs):
        return
    (features,) = _what_they_read(candidate, inputs, [last])
    target = outputs - _answer(candidate, inputs, last, 0)
    _solve_alone(last, features, _as_image(last, target), False)


def _spread(weight: Tensor, covariance: Tensor) -> Tensor:
    """Returns the standard deviation of each output, shape [c], for weights [c, m]."""
    return ((weight @ covariance) * weight).sum(1).clamp_min(1e-24).sqrt()


def _take_statistics(module: nn.Module, inputs: Tensor) -> None:
    """Replaces the running statistics of every batch-norm by those of one batch."""
    # The context restores momentum and tracking.
    with batch_statistics(module):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.track_running_stats, norm.momentum = True, 1.0
        module(inputs)
