"""A segmentor as one graph from image to class scores, for ONNX Runtime, TensorRT or torch.export."""

import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from mmseg.models import BaseSegmentor
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from mmseg_eomt.adapters.merge import merge
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.anomaly.results.outputs import GraphOutputs
from mmseg_eomt.inference import is_rgb
from mmseg_eomt.onnx_operators import onnxruntime_operators
from mmseg_eomt.whole import whole_file

OPSET = 18
DEFAULT_MULTIPLE = 32  # sides of the images for a backbone without patch_size
Scores = Tensor | tuple[Tensor, ...]  # of the classes; of the classes and of anomalies; of each task
Run = Callable[[Tensor], Scores]


class ImageToScores(nn.Module):
    """What is exported: the image as it is read from a file to the class scores of its pixels.

    Adapters are merged into the weights in place, and the model is set to evaluation. Every query is taken, whatever
    ``query_tolerance`` says, and the image is one window: resizing and sliding are left to the caller.

    Args:
        model: A segmentor of :func:`mmseg.apis.init_model`, on a CPU.
        anomaly: Names of anomaly scores, which become a second output; those of queries need a model whose config went
            through :func:`.with_anomaly_scores`. Default: none.

    Shapes: image (B, 3, H, W), float32 RGB from 0 to 255, to scores (B, K, H, W) as the decode head predicts them; with
    ``anomaly`` to these and anomaly scores (B, E, H, W).

    Raises:
        ValueError: If it is no segmentor or evaluated with masked attention, its adapters cannot be merged, or it does not
            predict an anomaly score.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: BaseSegmentor, anomaly: Sequence[str] = ()) -> None:
        super().__init__()
        if not hasattr(model, 'encode_decode'):
            raise ValueError(
                f'Only a segmentor with encode_decode (EncoderDecoder) is exported, got {type(model).__name__}.'
            )
        if (model.test_cfg or {}).get('masked_attention'):
            raise ValueError(
                'A graph draws nothing at random, as evaluation does with test_cfg.masked_attention: set it to False.'
            )
        self.outputs: Any = self.prepare(model, anomaly)
        self.segmentor: BaseSegmentor = model.requires_grad_(False)
        processor = model.data_preprocessor
        self.to_bgr = not is_rgb(model)
        self.normalises = processor._enable_normalize
        if self.normalises:
            self.register_buffer('mean', processor.mean.clone())
            self.register_buffer('std', processor.std.clone())
        self.eval()

    def prepare(self, model: BaseSegmentor, anomaly: Sequence[str]) -> Any:
        """Merge the model's adapters, and say what its prediction is split into."""
        if tuner_layers(model):
            merge(model)
        if hasattr(model.decode_head, 'query_tolerance'):
            model.decode_head.query_tolerance = 0.0
        return GraphOutputs(model.decode_head, anomaly)

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs."""
        return ['scores', *(['anomaly'] if self.outputs.names else [])]

    def forward(self, image: Tensor) -> Scores:
        """Scores (B, K, H, W) of an image (B, 3, H, W), and anomaly scores (B, E, H, W) if some are asked for."""
        if self.to_bgr:
            image = image.flip(1)
        if self.normalises:
            image = (image - self.mean) / self.std
        return self.outputs.split(self.segmentor.encode_decode(image, [dict(img_shape=image.shape[-2:])]))

    @property
    def multiple(self) -> int:
        """Sides of images of a dynamic size are multiples of this: the patch size."""
        return getattr(self.segmentor.backbone, 'patch_size', DEFAULT_MULTIPLE)

    @property
    def training_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that the model was made for; 512×512 where the backbone has no grid_size."""
        grid = getattr(self.segmentor.backbone, 'grid_size', None)
        return (512, 512) if grid is None else (grid[0] * self.multiple, grid[1] * self.multiple)

    def metadata(self) -> dict[str, str]:
        """What one has to know to use the graph, as strings; classes, mean and std as JSON."""
        known = dict(input='RGB, 0 to 255', patch_size=str(self.multiple))
        if self.normalises:
            rgb = slice(None, None, -1 if self.to_bgr else 1)
            known.update(
                mean=json.dumps([round(value, 4) for value in self.mean.flatten().tolist()[rgb]]),
                std=json.dumps([round(value, 4) for value in self.std.flatten().tolist()[rgb]]),
            )
        return {**known, **self.classes()}

    def classes(self) -> dict[str, str]:
        """The part of the metadata that says what the channels of the outputs are."""
        known = {}
        classes = getattr(self.segmentor, 'dataset_meta', None) or {}
        names = list(classes.get('classes') or ())
        if len(names) == self.outputs.num_classes:
            known['classes'] = json.dumps(names)
        if self.outputs.names:
            known['anomaly_scores'] = json.dumps(self.outputs.names)
        return known


def to_program(module: ImageToScores, size: Sequence[int] | None = None, batch: int | None = None) -> ExportedProgram:
    """Follow the model with torch.export.

    Args:
        module: Of a segmentor.
        size: Rows and columns of pixels, fixed. Default: any, of at least two patches a side in whole patches.
        batch: Images at a time, fixed. Default: any.

    Returns:
        A program from ``image`` to what the module returns.

    Raises:
        ValueError: If torch.export cannot follow the model, a fixed size is none, or PyTorch is too old.
    """
    if not hasattr(torch.compiler, 'is_exporting'):
        raise ValueError(f'Exporting needs PyTorch 2.7 or later, and {torch.__version__} is installed.')
    if min(*(size or (1, 1)), 1 if batch is None else batch) < 1:
        raise ValueError(f'A fixed size and batch are at least 1, got size {size} and batch {batch}.')
    step = module.multiple
    rows, columns = size or (3 * step, 4 * step)  # unequal, so that no side is taken for the other
    dims = {} if batch else {0: Dim('batch')}
    if size is None:
        dims.update({2: step * Dim('rows', min=2), 3: step * Dim('columns', min=2)})
    example = torch.zeros(batch or 2, 3, rows, columns)
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=dict(image=dims or None))
    except Exception as error:
        parts = f'{type(module.segmentor.backbone).__name__} with {type(module.segmentor.decode_head).__name__}'
        hint = 'Its size or batch cannot be left open: fix both' if dims else 'It cannot be exported as it is'
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f'torch.export cannot follow {parts}. {hint}. ({reason})') from error


@contextmanager
def whole_model(path: str | Path) -> Iterator[Path]:
    """Write an exported model as a whole (:func:`~.whole.whole_file`), with the weights that some formats put beside it.

    They take their place first, and a file that was there before goes before that: at no time does it stand beside weights
    of another.
    """
    with whole_file(path) as new:
        yield new
        for weights in weights_beside(new):
            if weights.exists():
                Path(path).unlink(missing_ok=True)
                with whole_file(Path(path).with_name(weights.name)) as new_weights:
                    os.replace(weights, new_weights)


def weights_beside(path: Path) -> tuple[Path, ...]:
    """Where the format of a file may put weights beside it."""
    names = {'.onnx': f'{path.name}.data', '.xml': f'{path.stem}.bin'}
    return tuple(path.with_name(name) for suffix, name in names.items() if path.suffix == suffix)


def save_program(program: ExportedProgram, path: str | Path, metadata: dict[str, str]) -> None:
    """Write a program for :func:`torch.export.load`, with the metadata as its extra file ``metadata.json``."""
    with whole_model(path) as new:
        torch.export.save(program, new, extra_files={'metadata.json': json.dumps(metadata)})


def save_onnx(
    program: ExportedProgram,
    path: str | Path,
    metadata: dict[str, str],
    outputs: Sequence[str] = ('scores',),
    for_onnxruntime: bool = False,
) -> None:
    """Write a program as ONNX (opset 18), metadata included, and have onnx check it.

    Args:
        program: Of :func:`to_program`.
        path: Of the file; weights of more than 1.5 GB go into a second one beside it, ``.data`` appended to its name.
        metadata: For ``metadata_props``.
        outputs: Names of the program's outputs. Default: ``('scores',)``.
        for_onnxruntime: Whether attention and GELU are ONNX Runtime's own operators, which are faster on a CPU; nothing else
            reads such a file. Default: False.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        ValueError: If ``for_onnxruntime`` does not take the model's attention.
    """
    check_onnx_packages()
    import onnx

    names = {0: 'batch', 2: 'height', 3: 'width'}
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)  # it names each package that it could translate and is not here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            exported = cast(
                ONNXProgram,
                torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=OPSET,
                    output_names=list(outputs),
                    verbose=False,
                    custom_translation_table=onnxruntime_operators() if for_onnxruntime else None,
                ),
            )
    except torch.onnx.OnnxExporterError as error:
        if not for_onnxruntime:
            raise
        reason = str(error.__cause__ or error).split('\n')[0]
        raise ValueError(
            f'The graph cannot be written with operators of ONNX Runtime: omit --onnxruntime. ({reason})'
        ) from error
    finally:
        logger.setLevel(level)
    for value in (*exported.model.graph.inputs, *exported.model.graph.outputs):
        shape: Any = value.shape
        for axis, name in names.items():
            if not isinstance(shape[axis], int):
                shape[axis] = name
    exported.model.metadata_props.update(metadata)
    with whole_model(path) as new:
        exported.save(new)
        onnx.checker.check_model(str(new))


def check_onnx_packages() -> None:
    """Raise an ImportError with the repairing command if a package that ONNX needs is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ONNX needs packages that are missing ({error}): run pip install onnx onnxscript onnxruntime'
        ) from None


def load_onnx(path: str | Path) -> Run:
    """An ONNX file as a function of tensors, on the CPU with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])

    def run(image: Tensor) -> Scores:
        outputs = [torch.from_numpy(values) for values in session.run(None, {'image': image.numpy()})]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run


def load_program(path: str | Path) -> Run:
    """A file of torch.export as a function of tensors."""
    return torch.export.load(path).module()


def example_images(module: ImageToScores, size: Sequence[int] | None = None, batch: int | None = None) -> list[Tensor]:
    """Random images of two sizes and batch sizes, or of those that are fixed: the training size, one image, comes first."""
    step = module.multiple
    first = tuple(size or module.training_size)
    second = tuple(size or (step * max(2, side // step * quarters // 4) for side, quarters in zip(first, (2, 3))))
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch or 1, 3, *first), (batch or 2, 3, *second)]
    return [255 * torch.rand(shape, generator=generator) for shape in dict.fromkeys(shapes)]


@torch.no_grad()
def difference(module: ImageToScores, run: Run, images: list[Tensor]) -> float:
    """Largest difference of scores between the module and what was exported, over the largest score of that output."""
    apart = []
    for image in images:
        for given, expected in zip(_each(run(image)), _each(module(image))):
            apart.append(float((given - expected).abs().max() / expected.abs().max()))
    return float(torch.tensor(apart).max())  # NaN if any is


def _each(scores: Scores) -> tuple[Tensor, ...]:
    """The outputs of a run."""
    return scores if isinstance(scores, tuple) else (scores,)


@torch.no_grad()
def times(module: ImageToScores, run: Run, images: Tensor, repeats: int = 5) -> tuple[float, float]:
    """Milliseconds per image of the module and of what was exported: medians of ``repeats`` runs each, taken in turns."""
    functions: tuple[Run, Run] = (module, run)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, kept in zip(functions, taken):
            start = time.perf_counter()
            function(images)
            kept.append(1000 * (time.perf_counter() - start) / len(images))
    return statistics.median(taken[0]), statistics.median(taken[1])
