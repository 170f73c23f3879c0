"""What every stage works with, made from the configuration alone: in the driver and in every worker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lana_ray.config import Config, Target
from lana_ray.data import ImageData, load_data
from lana_ray.layers import Layer, find_layers
from lana_ray.ops import register_files
from lana_ray.spaces.cells import CellSpace, CellStudents, DartsSpace, NasBench201Space
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.storage import FINGERPRINT_KEY, Storage, fingerprint
from lana_ray.teachers import check_outputs, normalisation, structure

TEACHER_FILE = "teacher.safetensors"


def candidate_file(layer: str, op: str) -> str:
    """Where a candidate's weights are kept in the run directory."""
    return f"candidates/{layer}--{op}.safetensors"


@dataclass(frozen=True)
class Workspace:
    """One run's data, networks and storage. Everything is loaded when it is first asked for."""

    config: Config

    @cached_property
    def storage(self) -> Storage:
        return Storage(self.config.run.dir)

    @cached_property
    def data(self) -> ImageData:
        mean, std = normalisation(self.config.teacher)
        return load_data(self.config.data, mean=mean, std=std, seed=self.config.run.seed)

    @cached_property
    def teacher(self) -> nn.Module:
        """The teacher as trained, from the run directory; frozen, in evaluation mode."""
        network = structure(self.config.teacher, self.data.num_classes)
        network.load_state_dict(self.storage.read_tensors(TEACHER_FILE))
        return network.to(memory_format=torch.channels_last).requires_grad_(False)

    @cached_property
    def teacher_key(self) -> str:
        """Identity of the teacher's weights and of the data it was trained on."""
        metadata = self.storage.tensor_metadata(TEACHER_FILE)
        assert metadata is not None, "the teacher stage comes first"
        return metadata[FINGERPRINT_KEY]

    @cached_property
    def space(self) -> LayerwiseSpace:
        """The pool's candidates for the layers of the trained teacher."""
        return _space(self.config, self.teacher)

    @cached_property
    def cells(self) -> CellStudents:
        """The networks of ``search.cells`` beside the teacher."""
        return CellStudents(
            cell_space(self.config, self.data.num_classes), self.space, seed=self.config.run.seed
        )

    def networks(self, *, cells: bool) -> LayerwiseSpace | CellStudents:
        """What builds and names networks: of cells, or of the teacher's layers."""
        return self.cells if cells else self.space

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.space.layers

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets with their input shape."""
        shape = (3, self.config.data.image_size, self.config.data.image_size)
        return tuple(
            t.model_copy(update={"input_shape": t.input_shape or shape}) for t in self.config.targets
        )

    def candidate_key(self, layer: int, choice: int) -> str:
        """Identity of a distilled candidate: what it learns from, with what, and how."""
        distill = self.config.distill.model_dump(exclude={"group_size", "memory_gb"})
        place, op = self.layers[layer], self.space.ops[layer][choice]
        return fingerprint(self.teacher_key, place.name, op.key, distill, self.config.run.seed)

    def has_weights(self, layer: int, choice: int) -> bool:
        """Whether a candidate is one that distillation trains."""
        return self.space.ops[layer][choice].is_trained

    def candidate(self, layer: int, choice: int) -> nn.Module:
        """A distilled candidate, read from the run directory."""
        module = self.space.candidate(layer, choice)
        if self.has_weights(layer, choice):
            name = candidate_file(self.layers[layer].name, self.space.ops[layer][choice].name)
            module.load_state_dict(self.storage.read_tensors(name))
        return module.to(memory_format=torch.channels_last)

    def student(self, architecture: tuple[int, ...]) -> nn.Module:
        """The network an architecture makes of the distilled candidates; everything in it can be trained."""
        trained = {(i, choice): self.candidate(i, choice) for i, choice in enumerate(architecture) if choice}
        network = self.space.build(architecture, trained).requires_grad_(True)
        return network.to(memory_format=torch.channels_last)

    def student_key(self, architecture: tuple[int, ...]) -> str:
        """Identity of the student before fine-tuning."""
        parts = [self.candidate_key(i, choice) for i, choice in enumerate(architecture) if choice]
        return fingerprint(self.teacher_key, self.space.describe(architecture), parts)


_in_this_process: dict[str, Workspace] = {}


def workspace_in_worker(config: Config) -> Workspace:
    """The workspace of a worker process, kept between tasks while run and teacher stay the same."""
    fresh = Workspace(config)
    key = fingerprint(config, fresh.storage.tensor_metadata(TEACHER_FILE))
    if key not in _in_this_process:
        _in_this_process.clear()
        _in_this_process[key] = fresh
    return _in_this_process[key]


def structural_space(config: Config, num_classes: int) -> LayerwiseSpace:
    """The same space on arbitrary weights, for a node that has neither the data nor the teacher's weights."""
    return _space(config, structure(config.teacher, num_classes))


def structural_cells(config: Config, num_classes: int) -> CellStudents:
    """The networks of ``search.cells`` beside the teacher's structure, for such a node."""
    return CellStudents(cell_space(config, num_classes), structural_space(config, num_classes))


def cell_space(config: Config, num_classes: int, *, of_supernet: bool = False) -> CellSpace:
    """The space of ``search.cells``; that of the supernet may be narrower and have fewer cells."""
    cells = config.search.cells
    assert cells is not None
    width, count = cells.width, cells.cells
    if of_supernet:
        width, count = cells.search_width or width, cells.search_cells or count
    preset = {"nasbench201": NasBench201Space, "darts": DartsSpace}[cells.space]
    return preset(classes=num_classes, width=width, cells=count, stem=cells.stem)


def _space(config: Config, network: nn.Module) -> LayerwiseSpace:
    register_files(config.pool.modules)
    device = next((p.device for p in network.parameters()), None)  # a worker may have moved it to its GPU
    layers = find_layers(network, _example(config).to(device), config.teacher.layers)
    return LayerwiseSpace(network, layers, config.pool.ops or config.pool.preset, seed=config.run.seed)


def _example(config: Config) -> Tensor:
    size = config.data.image_size
    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))


def check_teacher(config: Config, network: nn.Module, num_classes: int) -> None:
    """Raises UserError unless the teacher runs on the data's images and has layers to replace."""
    check_outputs(network, _example(config), num_classes)
    _space(config, network)
