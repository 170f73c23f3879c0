"""The data, networks and storage of a run, made from its configuration in the driver and every worker."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lana_ray.config import Config, Target
from lana_ray.costs.samples import SampleStore
from lana_ray.errors import UserError
from lana_ray.ids import Architecture, CandidateId
from lana_ray.networks.layers import Layer, find_layers
from lana_ray.networks.preparation import example_images, memory_format
from lana_ray.networks.teachers import (
    Teacher,
    load_teacher,
    network_code,
    normalisation,
    normalisation_of,
    structure,
)
from lana_ray.ops import register_files
from lana_ray.run_dir import layout
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import FINGERPRINT_KEY, Storage
from lana_ray.spaces.cells import SPACES, CellSpace, CellStudents
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace
from lana_ray.training.job import TrainJob

if TYPE_CHECKING:
    from lana_ray.data import ImageData


@dataclass(frozen=True)
class Workspace:
    """The data, networks and storage of one run, each loaded on first use."""

    config: Config

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.config.run.dir)

    @cached_property
    def samples(self) -> SampleStore:
        """The samples of the run directory."""
        return SampleStore(self.storage)

    @cached_property
    def opened(self) -> ImageData:
        """The data with ImageNet's normalisation, independent of the teacher."""
        from lana_ray.data import load_data  # imports torchvision, which only some processes need

        return load_data(self.config.data, seed=self.config.run.seed)

    @cached_property
    def data(self) -> ImageData:
        """The data, normalised with ``data.mean`` and ``data.std`` or as in the teacher's own training."""
        settings = self.config.data
        if settings.mean is not None and settings.std is not None:
            return self.opened.normalised(settings.mean, settings.std)
        own = normalisation(self.config.teacher) or normalisation_of(self._structure[0])
        return self.opened.normalised(*own)

    @cached_property
    def _structure(self) -> tuple[nn.Module, frozenset[str]]:
        return _structure(self.config, self.opened.num_classes)

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained teacher from the run directory: frozen, in evaluation mode."""
        network, _ = self._structure
        network.load_state_dict(self.storage.read_tensors(layout.TEACHER))
        return network.to(memory_format=memory_format(network)).requires_grad_(False)

    @cached_property
    def loaded(self) -> Teacher:
        """The teacher before any training on the data."""
        size, seed = self.config.data.image_size, self.config.run.seed
        return load_teacher(self.config.teacher, self.opened.num_classes, image_size=size, seed=seed)

    def teacher_to_train(self) -> nn.Module:
        """A copy of ``loaded`` in which the parameters to train require gradients."""
        network = copy.deepcopy(self.loaded.network)
        network = network.to(memory_format=memory_format(network))
        _require_gradients(network, self._reached(network) - self.loaded.frozen)
        return network

    @cached_property
    def _trainable(self) -> frozenset[str]:
        """The teacher's parameters that fine-tuning changes: neither frozen by the user nor unused."""
        return self._reached(self.teacher) - self._structure[1]

    def _reached(self, network: nn.Module) -> frozenset[str]:
        return reached_parameters(network, example_images(self.config.data.image_size))

    @cached_property
    def teacher_key(self) -> str:
        """Identity of the teacher's weights and of the data it was trained on."""
        metadata = self.storage.tensor_metadata(layout.TEACHER)
        assert metadata is not None, "the teacher stage comes first"
        return metadata[FINGERPRINT_KEY]

    @cached_property
    def space(self) -> LayerwiseSpace:
        """The pool's candidates for the layers of the trained teacher."""
        _ = self.teacher  # loads the weights into the network of the space
        return self.untrained_space

    @cached_property
    def untrained_space(self) -> LayerwiseSpace:
        """The same object as ``space``; until that is read, its network has arbitrary weights."""
        return find_space(self.config, self._structure[0])

    @cached_property
    def cells(self) -> CellStudents:
        """The networks of ``search.cells``, with the teacher as their reference."""
        return CellStudents(
            cell_space(self.config, self.data.num_classes), self.space, seed=self.config.run.seed
        )

    def students(self, space: str) -> StudentSpace:
        """The space of students by name: ``cells`` or ``layers``."""
        return self.space if space == self.space.name else self.cells

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.space.layers

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets with their input shape, and measured as the budgets need it."""
        size, budgets = self.config.data.image_size, self.config.budgets.latencies
        return tuple(
            target.judged_by(budgets).model_copy(
                update={"input_shape": target.input_shape or (3, size, size)}
            )
            for target in self.config.targets
        )

    def candidate_key(self, candidate: CandidateId) -> str:
        """Identity of a distilled candidate: its teacher, structure, data and training."""
        # ``memory_gb`` counts, because batch-norms have other statistics if a batch is split into parts.
        distill = self.config.distill.model_dump(exclude={"group_size"})
        layer, choice = self.space.place(candidate)
        at, op = self.layers[layer], self.space.ops[layer][choice]
        method = method_version("cluster.distill_worker", "spaces.layerwise")
        return fingerprint(
            self.teacher_key, at.name, *at.place, op.key, distill, self.config.run.seed, method
        )

    def has_weights(self, candidate: CandidateId) -> bool:
        """Whether a candidate is trained by distillation."""
        return self.space.is_trained(*self.space.place(candidate))

    def candidate(self, candidate: CandidateId) -> nn.Module:
        """A distilled candidate from the run directory; raises UserError if other settings made the file."""
        module = self.space.candidate(*self.space.place(candidate))
        if self.has_weights(candidate):
            name = layout.candidate(candidate)
            metadata = self.storage.tensor_metadata(name) or {}
            if metadata.get(FINGERPRINT_KEY) != self.candidate_key(candidate):
                raise UserError(
                    "changed",
                    f"{self.storage.url(name)}: was made with other settings; rerun the same command to "
                    "distil it again",
                )
            module.load_state_dict(self.storage.read_tensors(name))
        return module.to(memory_format=memory_format(self.teacher))

    def student(self, architecture: Architecture) -> nn.Module:
        """The teacher with an architecture's distilled candidates in place.

        All parameters require gradients except those that the user froze and those that have no effect.
        """
        chosen = self.space.chosen(architecture)
        trained = {
            (i, j): self.candidate(one)
            for i, (j, one) in enumerate(zip(architecture, chosen, strict=True))
            if j
        }
        network = self.space.build(architecture, trained)
        _require_gradients(network, self._trainable)
        for layer, choice in zip(self.layers, architecture, strict=True):
            if choice:
                network.get_submodule(layer.name).requires_grad_(True)
        return network.to(memory_format=memory_format(network))

    def student_key(self, architecture: Architecture) -> str:
        """Identity of the student before fine-tuning."""
        chosen = self.space.chosen(architecture)
        parts = [self.candidate_key(one) for one, j in zip(chosen, architecture, strict=True) if j]
        return fingerprint(self.teacher_key, self.space.label(architecture), parts)

    @property
    def teacher_job(self) -> TrainJob:
        """The training of the teacher."""
        return TrainJob(file=layout.TEACHER, key=self.teacher_key, architecture=None)

    def student_job(self, space: StudentSpace, architecture: Architecture) -> TrainJob:
        """The fine-tuning of a student; targets and budgets that chose the same student share it."""
        settings = (self.config.finetune, self.data.fingerprint, self.config.run.seed)
        start = self.student_key(architecture) if space.keeps_layers else self._cells_key(architecture)
        key = fingerprint(start, *settings, method_version("training.loop", "spaces.cells.students"))
        return TrainJob(file=layout.student(key), key=key, architecture=architecture, space=space.name)

    def _cells_key(self, architecture: Architecture) -> str:
        """Identity of a network of cells before its training, with the settings that only cells have."""
        cells = self.config.search.cells
        assert cells is not None
        own = (cells.drop_path, cells.auxiliary_weight)
        return fingerprint(self.teacher_key, self.cells.network_structure(architecture), *own)


_in_this_process: dict[str, Workspace] = {}


def workspace_in_worker(config: Config) -> Workspace:
    """The workspace of a worker process, reused by later tasks of the same run and teacher."""
    fresh = Workspace(config)
    key = fingerprint(config, fresh.storage.tensor_metadata(layout.TEACHER))
    if key not in _in_this_process:
        _in_this_process.clear()
        _in_this_process[key] = fresh
    return _in_this_process[key]


def structural_space(config: Config, num_classes: int) -> LayerwiseSpace:
    """``Workspace.space`` with arbitrary weights, for nodes without the data and the teacher's weights."""
    return find_space(config, _structure(config, num_classes)[0])


@functools.lru_cache(maxsize=1)
def structural_students(config: Config, num_classes: int, space: str) -> StudentSpace:
    """``Workspace.students`` with arbitrary weights, kept in the process."""
    layers = structural_space(config, num_classes)
    return layers if space == layers.name else CellStudents(cell_space(config, num_classes), layers)


def cell_space(config: Config, num_classes: int, *, of_supernet: bool = False) -> CellSpace:
    """The space of ``search.cells``; the supernet's may be narrower and have fewer cells."""
    cells = config.search.cells
    assert cells is not None
    width, count = cells.width, cells.cells
    if of_supernet:
        width, count = cells.search_width or width, cells.search_cells or count
    return SPACES[cells.space](classes=num_classes, width=width, cells=count, stem=cells.stem)


def _structure(config: Config, num_classes: int) -> tuple[nn.Module, frozenset[str]]:
    size, seed = config.data.image_size, config.run.seed
    return structure(config.teacher, num_classes, image_size=size, seed=seed)


def find_space(config: Config, network: nn.Module) -> LayerwiseSpace:
    """The pool's candidates for the layers of a prepared teacher."""
    register_files(config.pool.modules)
    device = next((p.device for p in network.parameters()), None)  # a worker may have moved it to its GPU
    images = example_images(config.data.image_size).to(device)
    layers = find_layers(network, images, config.teacher.layers)
    pool, code = config.pool.ops or config.pool.preset, network_code(config.teacher)
    return LayerwiseSpace(network, layers, pool, seed=config.run.seed, code=code)


def reached_parameters(network: nn.Module, images: Tensor) -> frozenset[str]:
    """Parameters, under all their names, that affect the outputs in evaluation mode, so can be trained."""
    trial = copy.deepcopy(network).cpu().eval()
    parameters = dict(trial.named_parameters(remove_duplicate=False))
    for parameter in parameters.values():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with torch.enable_grad():
        pending = [trial(images).grad_fn]
    seen: set[Any] = set()
    leaves: set[int] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaves.add(id(getattr(node, "variable", None)))
        pending.extend(following for following, _ in node.next_functions)
    return frozenset(name for name, parameter in parameters.items() if id(parameter) in leaves)


def _require_gradients(network: nn.Module, names: Collection[str]) -> None:
    for name, parameter in network.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in names)
