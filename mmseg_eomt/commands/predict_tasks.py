"""Several tasks of ``tools/predict.py``: one pass of the model, and each task's results in a folder of its own."""

import argparse
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample

from mmseg_eomt.commands.predictor import Prediction, Predictor


def check_has_no_tasks(config: Config) -> None:
    """Raise ValueError if a config with tasks is used as that of a single model."""
    if config.model.get('tasks'):
        raise ValueError(f'The config has the tasks {", ".join(config.model.tasks)}: omit CHECKPOINT and add --tasks all.')


class TaskPredictor(Predictor):
    """A model of several tasks, and a predictor for the results of each."""

    def __init__(self, args: argparse.Namespace, model: BaseSegmentor) -> None:
        super().__init__(args, model)
        self.parts = {
            name: Predictor(argparse.Namespace(**{**vars(args), 'out': args.out / name}), task)
            for name, task in model.tasks.items()
        }

    def read(self, sample: SegDataSample) -> dict[str, Prediction]:
        """What is written of a sample's tasks."""
        return {name: part.read(sample.tasks[name]) for name, part in self.parts.items()}

    def folders(self) -> list[str]:
        """Where pictures go."""
        return [f'{name}/{folder}' for name, part in self.parts.items() for folder in part.folders()]

    def pictures(self, image: np.ndarray, found: dict[str, Prediction], all_named: bool) -> dict[str, np.ndarray]:
        """The pictures of an image by the folders that they go to."""
        return {
            f'{name}/{folder}': picture
            for name, part in self.parts.items()
            for folder, picture in part.pictures(image, found[name], all_named).items()
        }

    def write(self, name: str, found: Any) -> None:
        """Write the values of an image or a frame."""
        for task, part in self.parts.items():
            part.write(name, found[task])

    def save(self, name: str, image: np.ndarray, found: Any) -> None:
        """Write the values and pictures of an image's tasks."""
        for task, part in self.parts.items():
            part.save(name, image, found[task])
