"""Predictions of images and videos, and how they are written."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmseg.apis import inference_model
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from tqdm import tqdm

from mmseg_eomt.commands.predict_anomaly import HEAT_MAPS, AnomalyMap, AnomalyResults
from mmseg_eomt.commands.predict_inputs import Films, batches, read_frames, write
from mmseg_eomt.visualization import UNKNOWN, outlined, overlay, with_legend


class Prediction(NamedTuple):
    """Class ids (H, W) of an image, and its anomaly map if one is asked for."""

    labels: np.ndarray
    anomaly: AnomalyMap | None


class Predictor:
    """The model, and how its results are written."""

    def __init__(self, args: argparse.Namespace, model: BaseSegmentor) -> None:
        self.args = args
        self.model = model
        self.classes, self.palette = (list(self.model.dataset_meta[name]) for name in ('classes', 'palette'))
        self.anomalies: AnomalyResults | None = None

    def find_anomalies(self) -> None:
        """Map anomaly scores from now on, if they are asked for."""
        if self.args.anomaly is not None:
            self.anomalies = AnomalyResults(self.args, self.model.decode_head.num_classes)

    def samples(self, images: list[np.ndarray]) -> list[SegDataSample | str]:
        """Predictions of images (H, W, 3), BGR, of one size; a sentence for one that cannot be predicted."""
        try:
            return inference_model(self.model, images)
        except Exception as error:  # of any library; such as an image of one row, of which resizing leaves none
            if len(images) > 1:  # too many for the memory, perhaps
                return [sample for image in images for sample in self.samples([image])]
            height, width = images[0].shape[:2]
            return [f'there is no prediction of {width}×{height} pixels ({str(error).strip() or type(error).__name__})']

    def predictions(self, images: list[np.ndarray]) -> list[Any]:
        """What is written of images (H, W, 3), BGR, of one size; a sentence for one that cannot be predicted."""
        return [sample if isinstance(sample, str) else self.read(sample) for sample in self.samples(images)]

    def read(self, sample: SegDataSample) -> Any:
        """What is written of a sample."""
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(dtype)
        return Prediction(labels, self.anomalies.read(sample) if self.anomalies else None)

    def picture(self, image: np.ndarray, found: Prediction, all_named: bool) -> np.ndarray:
        """BGR image under its labels, with the names of its classes or of all, and with lines around what no class names."""
        named = list(range(len(self.classes))) if all_named else np.unique(found.labels).tolist()
        coloured = overlay(image[..., ::-1], found.labels, self.palette, self.args.opacity)
        classes, palette = self.classes, self.palette
        if found.anomaly is not None and found.anomaly.mask is not None:
            coloured = outlined(coloured, found.anomaly.mask, UNKNOWN)
            classes, palette, named = [*classes, 'unknown'], [*palette, UNKNOWN], [*named, len(classes)]
        return with_legend(coloured, classes, palette, named)[..., ::-1]

    def folders(self) -> list[str]:
        """Where pictures go."""
        return ['overlays', *([HEAT_MAPS] if self.anomalies else [])]

    def pictures(self, image: np.ndarray, found: Any, all_named: bool) -> dict[str, np.ndarray]:
        """The pictures of an image by the folders that they go to."""
        drawn = dict(overlays=self.picture(image, found, all_named))
        if self.anomalies and found.anomaly:
            drawn[HEAT_MAPS] = self.anomalies.picture(image, found.anomaly)
        return drawn

    def write(self, name: str, found: Any) -> None:
        """Write the values of an image or a frame."""
        write(self.args.out / 'labels' / f'{name}.png', found.labels)
        if self.anomalies and found.anomaly:
            self.anomalies.write(name, found.anomaly)

    def save(self, name: str, image: np.ndarray, found: Any) -> None:
        """Write an image's values and pictures, or its files for a benchmark."""
        if self.anomalies and self.anomalies.submission and found.anomaly:
            self.anomalies.submission.write(name, found.labels, found.anomaly.scores)
            return
        self.write(name, found)
        for folder, picture in self.pictures(image, found, False).items():
            write(self.args.out / folder / f'{name}.png', picture)

    def video(self, path: Path, name: str) -> None:
        """Write a video's pictures and its frames' values.

        Raises:
            ValueError: If it cannot be read or predicted, or there is no encoder.
        """
        video = cv2.VideoCapture(str(path))
        rate = video.get(cv2.CAP_PROP_FPS) or 25
        number = 0
        total = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        folders = [self.args.out / folder for folder in self.folders()]
        with Films(folders, name, rate) as films, tqdm(total=total, desc=path.name, unit='frames') as bar:
            frames = (((None, None), frame) for frame in read_frames(video))
            for _, images in batches(frames, self.args.batch_size):
                for image, found in zip(images, self.predictions(images)):
                    if isinstance(found, str):
                        raise ValueError(found)
                    # all classes are named: the legend must not change from frame to frame
                    for folder, picture in self.pictures(image, found, True).items():
                        films.add(self.args.out / folder, picture)
                    self.write(f'{name}/{number:06d}', found)
                    number += 1
                    bar.update()
            if not number:
                raise ValueError('the video cannot be read, or holds no frame')
