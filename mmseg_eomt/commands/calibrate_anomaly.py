"""Thresholds of ``tools/predict.py --anomaly SCORE --calibrate``, from images without anomalies."""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor
from tqdm import tqdm

from mmseg_eomt.anomaly import AnomalyDataset
from mmseg_eomt.anomaly.metrics.counts import IGNORED, ScoreCounts
from mmseg_eomt.anomaly.results.settings import settings_digest
from mmseg_eomt.anomaly.results.thresholds import Calibration
from mmseg_eomt.anomaly.scores import Score
from mmseg_eomt.anomaly.segmentor import anomaly_maps
from mmseg_eomt.commands.predict_anomaly import base_config, thresholds_file
from mmseg_eomt.commands.predict_inputs import batches, find_inputs, is_video, read_images
from mmseg_eomt.weights.sources import checkpoint_digest
from mmseg_eomt.whole import check_writable

Predict = Callable[[list[np.ndarray]], list[SegDataSample | str]]  # images (H, W, 3) of one size; a sentence for one without


def calibrate(args: argparse.Namespace, model: BaseSegmentor, predict: Predict) -> None:
    """Find the thresholds of a score at all false positive rates, and keep them with the checkpoint.

    Every pixel of a known class of the validation images is an inlier, and ignored ones are not counted; of images of
    ``--calibrate-images``, which have no labels, every pixel is one.

    Raises:
        ValueError: If there are no images, or no pixel is an inlier.
    """
    path = thresholds_file(args)
    check_writable(path.parent)
    calibration = Calibration.update(path, args.checkpoint, checkpoint_digest(args.checkpoint))
    score = Score.parse(args.anomaly)
    counts = ScoreCounts(str(score), score.inlier(model.decode_head.num_classes))
    config = base_config(args)
    if args.calibrate_images:
        loader = config.test_dataloader
        name, pixels = str(args.calibrate_images), of_folder(args, predict)
    else:
        loader = config.get('val_dataloader') or config.test_dataloader
        name, pixels = of_validation(args, model, loader)
    number = 0
    for scores, labels in pixels:
        counts.add(scores, labels)
        number += 1
    calibration.add(str(score), counts, name, number, settings_digest(config, loader.dataset))
    calibration.save(path)
    print(f'Wrote the thresholds of {score} on {number} images of {name} to {path}')


def of_validation(
    args: argparse.Namespace, model: BaseSegmentor, settings: dict[str, Any]
) -> tuple[str, Iterator[tuple[Tensor, Tensor]]]:
    """Name of the validation images, and their scores and labels of inliers."""
    loader = Runner.build_dataloader(settings)
    dataset = loader.dataset
    name = ' '.join(filter(None, [type(dataset).__name__, (getattr(dataset, 'data_prefix', None) or {}).get('img_path')]))
    if isinstance(dataset, AnomalyDataset) or getattr(dataset, 'split', None) == 'anomaly':
        raise ValueError(
            f'{name} labels anomalies, and thresholds are calibrated without them: set val_dataloader to data with labels '
            f'of the classes, or give --calibrate-images FOLDER.'
        )

    def pixels() -> Iterator[tuple[Tensor, Tensor]]:
        with tqdm(total=len(dataset), desc='Calibrating', unit='images') as bar:
            for batch in loader:
                with torch.no_grad():
                    samples = model.test_step(batch)
                for sample in samples:
                    if 'gt_sem_seg' not in sample:
                        raise ValueError(f'{name} has no labels: give --calibrate-images FOLDER to count every pixel.')
                    scores = anomaly_maps(sample, [args.anomaly])[0]
                    labels = sample.gt_sem_seg.data[0].to(scores.device)
                    yield scores, (labels >= model.decode_head.num_classes) * IGNORED
                    bar.update()

    return name, pixels()


def of_folder(args: argparse.Namespace, predict: Predict) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores of all images of a folder, and labels by which every pixel is an inlier."""
    images = [item for item in find_inputs([args.calibrate_images], args.out) if not is_video(item[0])]
    failed: list[str] = []
    with tqdm(total=len(images), desc='Calibrating', unit='images') as bar:
        for sources, batch in batches(read_images(images, failed), args.batch_size):
            for (path, _), found in zip(sources, predict(batch)):
                if isinstance(found, str):
                    failed.append(f'{path}: {found}')
                else:
                    scores = anomaly_maps(found, [args.anomaly])[0]
                    yield scores, torch.zeros_like(scores, dtype=torch.int64)
            bar.update(len(batch))
        bar.update(len(images) - bar.n)
    if failed:
        print('\n  '.join([f'{len(failed)} of {len(images)} images were not counted:', *failed]), file=sys.stderr)
