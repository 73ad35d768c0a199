"""Towers as programs without Python: ONNX and torch.export, for any number of rows, checked before they are kept."""

import contextlib
import importlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.errors import UserError

TOLERANCE = 1e-4
ONNX = Path("onnx/model.onnx")
INT8 = Path("onnx/model_int8.onnx")
PT2 = Path("model.pt2")
MOST_BYTES = 1 << 30
"""Weights beyond it lie beside an ONNX file, which cannot hold more than 2 GiB."""

Inputs = dict[str, Array]


class Graph(Protocol):
    """A module that takes tensors by name, whose operations are the same whatever they hold."""

    output: str
    free: Mapping[str, tuple[int, ...]]
    """By input, the axes of any length."""

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the program computes."""

    def reference(self, inputs: dict[str, Tensor]) -> Tensor:
        """The same by the tower itself."""

    def random(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Inputs of ``count`` rows."""


def check_packages() -> None:
    """Refuse to go on without the packages that ONNX needs.

    Raises:
        UserError: names the extra.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _package(name)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"format=onnx needs the package {name}. Install the extra: pip install 'avrec[export]'"
        ) from error


def write_graph(graph: Any, folder: Path, form: str, int8: bool = False) -> dict[str, float]:
    """Write a tower as a program, and hold it against the tower on random inputs of several sizes.

    Args:
        graph: ``Graph``; a module.
        folder: gets ``onnx/model.onnx`` or ``model.pt2``.
        form: ``onnx`` or ``torch_export``.
        int8: write ``onnx/model_int8.onnx`` too; how far it is from the tower is measured, not checked.

    Returns:
        Largest absolute difference from the tower, by file.

    Raises:
        UserError: a package is missing, or the program differs from the tower by more than ``TOLERANCE``.
    """
    example = graph.random(3, np.random.default_rng(0))
    program = _program(graph, example)
    if form == "torch_export":
        torch.export.save(program, folder / PT2)
        found = {str(PT2): _difference(graph, load_program(folder / PT2))}
    else:
        check_packages()
        _write_onnx(program, folder / ONNX, list(example), graph.output)
        found = {str(ONNX): _difference(graph, load_onnx(folder / ONNX))}
    for name, difference in found.items():
        if not difference <= TOLERANCE:
            raise UserError(
                f"{name} differs from its tower by {difference:.2g}, and {TOLERANCE:g} is allowed. Nothing was "
                "written. Choose format=safetensors, or another encoder, fusion or user tower."
            )
    if int8:
        _write_int8(folder / ONNX, folder / INT8)
        found[str(INT8)] = _difference(graph, load_onnx(folder / INT8))
    return found


def load_program(path: Path) -> Callable[[Inputs], Array]:
    """A ``model.pt2`` as a function of arrays."""
    program = torch.export.load(path).module()
    return lambda inputs: program({name: torch.from_numpy(array) for name, array in inputs.items()}).detach().numpy()


def load_onnx(path: Path) -> Callable[[Inputs], Array]:
    """An ONNX file as a function of arrays, in onnxruntime."""
    session = _package("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    return lambda inputs: session.run(None, {name: array for name, array in inputs.items() if name in names})[0]


@torch.no_grad()
def _difference(graph: Graph, program: Callable[[Inputs], Array]) -> float:
    rng = np.random.default_rng(1)
    largest = 0.0
    for count in (1, 2, 7):
        inputs = graph.random(count, rng)
        found = program({name: tensor.numpy() for name, tensor in inputs.items()})
        largest = max(largest, float(np.abs(found - graph.reference(inputs).numpy()).max()))
    return largest


@torch.no_grad()
def _program(graph: Any, example: Mapping[str, Tensor]) -> Any:
    shapes = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in graph.free.items()}
    with _decomposed():
        return torch.export.export(graph, (dict(example),), dynamic_shapes=(shapes,))


@contextlib.contextmanager
def _decomposed() -> Iterator[None]:
    """torch's transformer layers as single operations: their fused one has no counterpart in a graph."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _write_onnx(program: Any, path: Path, inputs: list[str], output: str) -> None:
    path.parent.mkdir(exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    with _quiet():
        torch.onnx.export(
            program,
            f=path,
            input_names=inputs,
            output_names=[output],
            dynamo=True,
            external_data=size > MOST_BYTES,
            verbose=False,
        )


def _write_int8(source: Path, path: Path) -> None:
    _package("onnxruntime")
    quantization = importlib.import_module("onnxruntime.quantization")
    with _quiet():
        # onnxruntime has no signed kernel for convolutions; they stay as they are.
        quantization.quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters print and log and nobody can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
