"""An exported graph as a model of OpenVINO, in fp32 or with linear layers in int8."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from mmseg_eomt.export import Run, Scores, whole_model

if TYPE_CHECKING:
    from openvino import Model

GROUP = 'mmseg_eomt'  # of the metadata in a file's rt_info
LEAST = 5  # tensors of images that quantizing takes
IMAGE_SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'}


def check_openvino_packages(int8: bool = False) -> None:
    """See that OpenVINO is there, and what quantizes.

    Raises:
        ImportError: If a package is missing; the message says what to install.
    """
    try:
        import openvino  # noqa: F401

        if int8:
            import nncf  # noqa: F401
    except ImportError as error:
        packages = 'openvino nncf' if int8 else 'openvino'
        raise ImportError(f'OpenVINO needs packages that are missing ({error}): run pip install {packages}') from None


def to_openvino(program: ExportedProgram, metadata: dict[str, str], outputs: Sequence[str] = ('scores',)) -> 'Model':
    """Convert a program to OpenVINO's graph.

    Args:
        program: Of :func:`.to_program`, of a fixed size; OpenVINO does not convert an open one.
        metadata: What a file of it says beside the graph.
        outputs: Names of the program's outputs. Default: ``('scores',)``.

    Raises:
        ImportError: If OpenVINO is missing.
        ValueError: If it cannot convert the program.
    """
    check_openvino_packages()
    import openvino

    try:
        model = openvino.convert_model(program)
    except Exception as error:
        reason = ' '.join(str(error).split('Summary:')[-1].split())[:200]
        raise ValueError(
            f'OpenVINO cannot convert the graph: fix its size if it is open, or export to ONNX. ({reason})'
        ) from error
    model.inputs[0].get_tensor().set_names({'image'})
    model.reshape({'image': openvino.PartialShape(_sides(program))})  # the conversion forgets the size
    for output, name in zip(model.outputs, outputs):
        output.get_tensor().set_names({name})
    for key, value in metadata.items():
        model.set_rt_info(value, [GROUP, key])
    return model


def _sides(program: ExportedProgram) -> list[int]:
    """Sides of a program's image; -1 for those that are open."""
    (name,) = program.graph_signature.user_inputs
    image = next(node for node in program.graph.nodes if node.name == name)
    return [side if isinstance(side, int) else -1 for side in image.meta['val'].shape]


def quantize(model: 'Model', images: Sequence[Tensor]) -> 'Model':
    """Quantize the layers that have weights to int8, after training, with ranges from some images.

    Products of two activations, which are attention and the queries' with the maps, stay in fp32: quantized, they lose more
    accuracy, and OpenVINO no longer computes attention in one fused kernel.

    Args:
        model: Of :func:`to_openvino`; unchanged.
        images: Each (B, 3, H, W), as the graph takes them.

    Returns:
        The quantized model, with the metadata of the first.

    Raises:
        ImportError: If OpenVINO or NNCF is missing.
        ValueError: If there is no image.

    Source: NNCF's post-training quantization with SmoothQuant (Xiao et al., ICML 2023) for transformers.
    """
    check_openvino_packages(int8=True)
    if not images:
        raise ValueError('Quantizing needs images to take the ranges of activations from, got none.')
    import nncf

    products = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == 'MatMul' and not _has_weights(op)]
    attention = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == 'ScaledDotProductAttention']
    quantized = nncf.quantize(
        model,
        nncf.Dataset([image.numpy() for image in images]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=products + attention),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # CPUs without VNNI add pairs of products in 16 bits, which eight bits of weight overflow
            overflow_fix=nncf.OverflowFix.ENABLE
        ),
    )
    for key, value in metadata_of(model).items():
        quantized.set_rt_info(value, [GROUP, key])
    return quantized


def _has_weights(op: Any) -> bool:
    """Whether one factor of a product comes from constants alone."""
    return any(_is_constant(value.get_source_output().get_node()) for value in op.inputs())


def _is_constant(op: Any) -> bool:
    if op.get_type_name() == 'Constant':
        return True
    inputs = op.inputs()
    return bool(inputs) and all(_is_constant(value.get_source_output().get_node()) for value in inputs)


def save_openvino(model: 'Model', path: str | Path) -> None:
    """Write a model as two files, ``….xml`` and its weights ``….bin``, each whole and never beside one of another."""
    import openvino

    with whole_model(path) as new:
        openvino.save_model(model, new, compress_to_fp16=False)


def metadata_of(model: 'Model') -> dict[str, str]:
    """The metadata that :func:`to_openvino` gave a model."""
    if not model.has_rt_info([GROUP]):
        return {}
    return {key: value.astype(str) for key, value in model.get_rt_info([GROUP]).astype(dict).items()}


def load_openvino(model: 'Model | str | Path', precision: str = 'f32') -> Run:
    """A model, or the file of one, as a function of tensors, on the CPU with as many threads as PyTorch uses.

    Args:
        model: Of :func:`to_openvino`, or a path.
        precision: What is computed in: ``'f32'``, or ``'bf16'`` where the CPU has it. Default: ``'f32'``; OpenVINO itself
            takes bf16 on a CPU that has it, and the scores then differ.
    """
    check_openvino_packages()
    import openvino

    settings = {
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'INFERENCE_PRECISION_HINT': precision,
        'PERFORMANCE_HINT': 'LATENCY',
    }
    source = str(model) if isinstance(model, str | Path) else model
    request = openvino.Core().compile_model(source, 'CPU', settings).create_infer_request()

    def run(image: Tensor) -> Scores:
        request.infer([image.numpy()], share_inputs=True)
        # a copy: the next run writes into the same memory
        outputs = [torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run


def read_images(folder: str | Path, size: Sequence[int], most: int, batch: int = 1) -> list[Tensor]:
    """Images of a folder and its subfolders, evenly spread over the sorted names, as a graph takes them.

    Args:
        folder: Where they are.
        size: Rows and columns that each is resized to.
        most: Number of images at most.
        batch: Images in a tensor; those that make no whole batch are skipped. Default: 1.

    Returns:
        Tensors (batch, 3, H, W), float32 RGB from 0 to 255; at least five.

    Raises:
        ValueError: If there are fewer, or one cannot be read.
    """
    files = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    wanted = max(min(most, len(files)) // batch, LEAST) * batch
    if len(files) < wanted:
        raise ValueError(f'{folder} has {len(files)} images, and at least {wanted} are needed: give a folder with more.')
    images = []
    for path in (files[i * len(files) // wanted] for i in range(wanted)):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'{path} cannot be read as an image.')
        resized = cv2.resize(image, (size[1], size[0]))[..., ::-1]
        images.append(torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32)))
    return list(torch.stack(images).split(batch))


def agreement(run: Run, expected: Run, images: Sequence[Tensor]) -> float:
    """Fraction of the images' pixels that get the same class from both: what quantizing changes in label maps."""
    same, number = 0, 0
    for image in images:
        labels, other = (_of_classes(function(image)).argmax(1) for function in (run, expected))
        same, number = same + int((labels == other).sum()), number + labels.numel()
    return same / number


def _of_classes(scores: Scores) -> Tensor:
    return scores[0] if isinstance(scores, tuple) else scores
