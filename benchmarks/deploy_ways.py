"""The ways to run a model on a CPU, for benchmarks/deploy.py: each from the same model to a function of images."""

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mmseg_eomt import deploy
from mmseg_eomt.export import Run, load_onnx, save_onnx


@dataclass
class Model:
    """What every way starts from.

    Args:
        module: Images to class scores.
        program: The same, exported with any batch.
        images: Each (1, 3, H, W), to quantize with.
        made: What several ways share, by name.
    """

    module: nn.Module
    program: ExportedProgram
    images: Sequence[Tensor]
    made: dict[str, Any] = field(default_factory=dict)


def eager(model: Model, batch: int) -> Run:
    return model.module


def compiled(model: Model, batch: int) -> Run:
    torch._dynamo.reset()
    return torch.compile(model.module, dynamic=False)


def bf16(model: Model, batch: int) -> Run:
    def run(image: Tensor) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16):
            return model.module(image).float()

    return run


def torchao_weights(model: Model, batch: int) -> Run:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = copy.deepcopy(model.module)
    quantize_(module, Int8WeightOnlyConfig())
    return module


def onnx(model: Model, batch: int) -> Run:
    with _onnx_file(model) as file:
        return load_onnx(file)


def onnx_dynamic(model: Model, batch: int) -> Run:
    from onnxruntime.quantization import quantize_dynamic

    with _onnx_file(model) as file:
        new = file.with_name('int8.onnx')
        # 7 bits of weight: pairs of products of 8 bits overflow on a CPU without VNNI
        quantize_dynamic(file, new, nodes_to_quantize=_linear_nodes(file), per_channel=True, reduce_range=True)
        return load_onnx(new)


def onnx_static(model: Model, batch: int) -> Run:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(model.images)

        def get_next(self) -> dict | None:
            image = next(self.images, None)
            return None if image is None else dict(image=image.numpy())

    with _onnx_file(model) as file:
        new = file.with_name('int8.onnx')
        quantize_static(
            file,
            new,
            Reader(),
            nodes_to_quantize=_linear_nodes(file),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
        )
        return load_onnx(new)


@contextlib.contextmanager
def _onnx_file(model: Model) -> Iterator[Path]:
    """Written once for all ways of a model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        if 'onnx' not in model.made:
            save_onnx(model.program, file, {})
            model.made['onnx'] = file.read_bytes()
        file.write_bytes(model.made['onnx'])
        yield file


def _linear_nodes(file: Path) -> list[str]:
    """Products with weights, by name; attention and the queries' products with the maps stay in fp32."""
    import onnx

    graph = onnx.load(file).graph
    weights = {value.name for value in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == 'Transpose' and node.input[0] in weights}
    return [node.name for node in graph.node if node.op_type in ('MatMul', 'Gemm') and node.input[1] in weights]


def openvino(model: Model, batch: int) -> Run:
    return _of_batch(_converted(model), model, batch)


def openvino_bf16(model: Model, batch: int) -> Run:
    return _of_batch(_converted(model), model, batch, 'bf16')


def openvino_int8(model: Model, batch: int) -> Run:
    if 'int8' not in model.made:
        model.made['int8'] = deploy.quantize(_converted(model), model.images)
    return _of_batch(model.made['int8'], model, batch)


def _converted(model: Model) -> Any:
    if 'openvino' not in model.made:
        model.made['openvino'] = deploy.to_openvino(model.program, {})
    return model.made['openvino']


def _of_batch(graph: Any, model: Model, batch: int, precision: str = 'f32') -> Run:
    """OpenVINO's graph with its size fixed, as who serves one size would."""
    fixed = graph.clone()
    fixed.reshape({'image': [batch, *model.images[0].shape[1:]]})
    return deploy.load_openvino(fixed, precision)


WAYS: dict[str, Callable[[Model, int], Run]] = {
    'PyTorch, eager': eager,
    'PyTorch, torch.compile': compiled,
    'PyTorch, bf16': bf16,
    'torchao, int8 weights': torchao_weights,
    'ONNX Runtime': onnx,
    'ONNX Runtime, int8 dynamic': onnx_dynamic,
    'ONNX Runtime, int8 static': onnx_static,
    'OpenVINO': openvino,
    'OpenVINO, bf16': openvino_bf16,
    'OpenVINO, int8': openvino_int8,
}
QUANTIZED = [name for name in WAYS if 'int8' in name or 'bf16' in name]


def lacking(name: str) -> str | None:
    """What a way lacks on this machine; None where it runs."""
    if 'bf16' in name and not torch.cpu._is_avx512_bf16_supported():
        return 'the CPU has no instructions for bf16'
    package = dict(torchao='torchao', ONNX='onnxruntime', OpenVINO='openvino').get(name.replace(',', '').split()[0])
    try:
        if package:
            __import__(package)
        if name == 'OpenVINO, int8':
            import nncf  # noqa: F401
    except ImportError as error:
        return str(error)
    return None
