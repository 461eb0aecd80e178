"""Several tasks as one graph, with an output for each."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmseg.models import BaseSegmentor
from torch import Tensor

from mmseg_eomt.export import ImageToScores


class TaskOutputs(NamedTuple):
    """The scores of some tasks among the channels of a prediction.

    Args:
        channels: Numbers of their classes, by task.
    """

    channels: dict[str, int]

    def split(self, predicted: Tensor) -> tuple[Tensor, ...]:
        """Scores (B, K, H, W) of each task, of a prediction (B, C, H, W)."""
        return predicted.split(list(self.channels.values()), dim=1)


class ImageToTaskScores(ImageToScores):
    """What is exported of a :class:`~.segmentor.MultiTaskSegmentor`: the image to the scores of each task.

    As :class:`~mmseg_eomt.export.ImageToScores`, but adapters stay beside the weights that tasks share.

    Shapes: image (B, 3, H, W), float32 RGB from 0 to 255, to a tuple of scores (B, K, H, W), one of each task,
    in the order of the model's.
    """

    def prepare(self, model: BaseSegmentor, anomaly: Sequence[str]) -> TaskOutputs:
        """Let every head take all queries."""
        tasks: dict[str, Any] = dict(model.tasks.items())
        for task in tasks.values():
            if hasattr(task.decode_head, 'query_tolerance'):
                task.decode_head.query_tolerance = 0.0
        return TaskOutputs({name: task.out_channels for name, task in tasks.items()})

    @property
    def output_names(self) -> list[str]:
        """``scores_`` and the task's name, of each."""
        return [f'scores_{name}' for name in self.outputs.channels]

    def classes(self) -> dict[str, str]:
        """The names of the tasks, and of the classes of each."""
        tasks = self.segmentor.tasks
        named = {f'classes_{name}': json.dumps(task.dataset_meta['classes']) for name, task in tasks.items()}
        return dict(tasks=json.dumps(list(tasks)), **named)
