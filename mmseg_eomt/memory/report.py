"""A prediction in words."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmseg_eomt.memory.ledger import PARTS
from mmseg_eomt.memory.predict import Prediction, predict
from mmseg_eomt.memory.search import CONTEXT_BYTES, GAPS, usable
from mmseg_eomt.tables import markdown_table

SWITCH = 'plan_memory'  # of a config: True says the peak on a CPU too, False never


def table(prediction: Prediction) -> str:
    """The parts of both peaks in MB, and their sums."""
    columns = [column for column in (prediction.training, prediction.evaluation) if column]
    names = ['training', 'evaluation'][: len(columns)]
    rows = [[part, *(_mb(column.get(part, 0)) for column in columns)] for part in PARTS]
    rows.append(['sum', *(_mb(sum(column.values())) for column in columns)])
    return '\n'.join(markdown_table([['MB at the peak', *names], *rows]))


def _mb(size: float) -> str:
    return f'{size / 1e6:,.0f}'


def option_line(options: Mapping[str, Any]) -> str:
    """``--cfg-options`` as they are typed."""
    return '--cfg-options ' + ' '.join(f'{name}={_typed(value)}' for name, value in options.items())


def _typed(value: Any) -> str:
    return f'"[{",".join(map(str, value))}]"' if isinstance(value, list) else str(value)


def announce(runner: Runner) -> None:
    """Log the predicted peak at the beginning of a run on a GPU, and warn where the GPU has less."""
    on_gpu = next(runner.model.parameters()).is_cuda
    if not runner.cfg.get(SWITCH, on_gpu) or not is_main_process():
        return
    try:
        prediction = predict(runner.cfg, 'cuda' if on_gpu else 'cpu')
    except Exception as error:  # a run must not end because another head or backbone cannot be predicted
        runner.logger.info(f'The peak of memory is not predicted: {type(error).__name__}: {error}')
        return
    training, evaluation = (sum(parts.values()) / 1e9 for parts in (prediction.training, prediction.evaluation))
    runner.logger.info(
        f'Predicted peak of memory: {training:.1f} GB in training, {evaluation:.1f} GB in evaluation '
        f'(weights {prediction.training.get("weights", 0) / 1e9:.1f} GB): docs/memory.md.'
    )
    if on_gpu:
        _compare(runner, max(training, evaluation))


def _compare(runner: Runner, peak: float) -> None:
    memory = torch.cuda.get_device_properties(next(runner.model.parameters()).device).total_memory
    if peak * 1e9 > usable(memory):
        runner.logger.warning(too_little(peak, memory / 1e9, runner.cfg.filename))


def too_little(peak: float, memory: float, config: str | None) -> str:
    """What to say where a GPU has less memory (in GB) than a run takes."""
    return (
        f'This run is predicted to take {peak:.1f} GB, beside {CONTEXT_BYTES / 1e9:.1f} GB of CUDA and {GAPS:.0%} of gaps, '
        f'and the GPU has {memory:.1f} GB. For settings that fit: python tools/plan.py {config or "CONFIG"} '
        f'--gpu-memory {memory:.0f}'
    )
