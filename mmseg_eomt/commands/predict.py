"""Label maps and pictures of images, folders and videos; of anomaly scores too.

    python tools/predict.py CONFIG CHECKPOINT INPUT… [--out DIR] [--anomaly rba [--threshold fpr=0.01]]

For each image, DIR/labels/NAME.png has the class ids in one channel, in the image's size, and DIR/overlays/NAME.png the
classes' colours over the image with a legend. A folder is read with its subfolders, whose names are kept. A video gives
DIR/overlays/NAME.mp4, and its frames' ids in DIR/labels/NAME/. With --anomaly, DIR/anomaly has maps of the score, and with
--threshold masks and components of what no class names.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.config import DictAction
from mmseg.apis import inference_model
from mmseg.structures import SegDataSample
from tqdm import tqdm

from mmseg_eomt.anomaly.results.submissions import check_images
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.calibrate_anomaly import calibrate
from mmseg_eomt.commands.predict_anomaly import (
    HEAT_MAPS,
    AnomalyMap,
    AnomalyResults,
    add_arguments,
    check_arguments,
    model_config,
    results,
)
from mmseg_eomt.commands.predict_inputs import Films, batches, find_inputs, is_video, read_frames, read_images, write
from mmseg_eomt.inference import load_model
from mmseg_eomt.visualization import UNKNOWN, outlined, overlay, with_legend
from mmseg_eomt.whole import check_writable


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with errors_in_a_sentence('predict'):
        check_arguments(args)
        inputs = find_inputs(args.inputs, args.out)
        if args.format:
            check_images([(name, is_video(path)) for path, name in inputs], args.format)
        for name in results(args):
            check_writable(args.out / name)
        predictor = Predictor(args)
        if args.calibrate or args.calibrate_images:
            calibrate(args, predictor.model, predictor.samples)
        if not inputs:
            return
        predictor.find_anomalies()
        try:
            failed = predict(inputs, predictor, args.batch_size)
        finally:  # a run that is stopped has the components of all masks that it has written
            if predictor.anomalies:
                predictor.anomalies.finish()
    if len(failed) < len(inputs):
        print(f'Wrote {" and ".join(str(args.out / name) for name in results(args))}')
    if failed:
        sys.exit('\n  '.join([f'predict: {len(failed)} of {len(inputs)} inputs could not be predicted:', *failed]))


def predict(inputs: list[tuple[Path, str]], predictor: 'Predictor', batch_size: int) -> list[str]:
    """Write the results of all inputs; a sentence for each that has none."""
    failed: list[str] = []
    images = [item for item in inputs if not is_video(item[0])]
    with tqdm(total=len(images), desc='Images', unit='images', disable=not images) as bar:
        for sources, batch in batches(read_images(images, failed), batch_size):
            for (path, name), image, found in zip(sources, batch, predictor.predictions(batch)):
                if isinstance(found, str):
                    failed.append(f'{path}: {found}')
                else:
                    predictor.save(name, image, found)
            bar.update(len(batch))
        bar.update(len(images) - bar.n)
    for path, name in inputs:
        if is_video(path):
            try:
                predictor.video(path, name)
            except ValueError as error:
                failed.append(f'{path}: {error}')
    return failed


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the model')
    parser.add_argument('checkpoint', help='its checkpoint; one of LoRA adapters too')
    parser.add_argument('inputs', type=Path, nargs='*', metavar='INPUT', help='images, folders of images, videos')
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder of the results (predictions)')
    parser.add_argument('--batch-size', type=int, default=4, help='images of one size at a time (4)')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the colours, from 0 to 1 (0.5)')
    parser.add_argument('--device', help='such as cuda:1 or cpu (a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='settings of the config to change'
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    if not (args.inputs or args.calibrate or args.calibrate_images):
        parser.error('the following arguments are required: INPUT')
    if args.batch_size < 1 or not 0 <= args.opacity <= 1:
        parser.error(f'--batch-size is 1 or more and --opacity from 0 to 1, got {args.batch_size} and {args.opacity}')
    return args


class Prediction(NamedTuple):
    """Class ids (H, W) of an image, and its anomaly map if one is asked for."""

    labels: np.ndarray
    anomaly: AnomalyMap | None


class Predictor:
    """The model, and how its results are written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = load_model(model_config(args), args.checkpoint, args.device)
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

    def predictions(self, images: list[np.ndarray]) -> list[Prediction | str]:
        """What is written of images (H, W, 3), BGR, of one size; a sentence for one that cannot be predicted."""
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        found: list[Prediction | str] = []
        for sample in self.samples(images):
            if isinstance(sample, str):
                found.append(sample)
                continue
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(dtype)
            found.append(Prediction(labels, self.anomalies.read(sample) if self.anomalies else None))
        return found

    def picture(self, image: np.ndarray, found: Prediction, named: list[int]) -> np.ndarray:
        """BGR image under its labels, with the names of some classes, and with lines around what no class names."""
        coloured = overlay(image[..., ::-1], found.labels, self.palette, self.args.opacity)
        classes, palette = self.classes, self.palette
        if found.anomaly is not None and found.anomaly.mask is not None:
            coloured = outlined(coloured, found.anomaly.mask, UNKNOWN)
            classes, palette, named = [*classes, 'unknown'], [*palette, UNKNOWN], [*named, len(classes)]
        return with_legend(coloured, classes, palette, named)[..., ::-1]

    def pictures(self, image: np.ndarray, found: Prediction, named: list[int]) -> dict[str, np.ndarray]:
        """The pictures of an image by the folders that they go to."""
        drawn = dict(overlays=self.picture(image, found, named))
        if self.anomalies and found.anomaly:
            drawn[HEAT_MAPS] = self.anomalies.picture(image, found.anomaly)
        return drawn

    def write(self, name: str, found: Prediction) -> None:
        """Write the values of an image or a frame."""
        write(self.args.out / 'labels' / f'{name}.png', found.labels)
        if self.anomalies and found.anomaly:
            self.anomalies.write(name, found.anomaly)

    def save(self, name: str, image: np.ndarray, found: Prediction) -> None:
        """Write an image's values and pictures, or its files for a benchmark."""
        if self.anomalies and self.anomalies.submission and found.anomaly:
            self.anomalies.submission.write(name, found.labels, found.anomaly.scores)
            return
        self.write(name, found)
        for folder, picture in self.pictures(image, found, np.unique(found.labels).tolist()).items():
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
        folders = [self.args.out / folder for folder in ('overlays', *([HEAT_MAPS] if self.anomalies else []))]
        with Films(folders, name, rate) as films, tqdm(total=total, desc=path.name, unit='frames') as bar:
            frames = (((None, None), frame) for frame in read_frames(video))
            for _, images in batches(frames, self.args.batch_size):
                for image, found in zip(images, self.predictions(images)):
                    if isinstance(found, str):
                        raise ValueError(found)
                    # all classes are named: the legend must not change from frame to frame
                    for folder, picture in self.pictures(image, found, list(range(len(self.classes)))).items():
                        films.add(self.args.out / folder, picture)
                    self.write(f'{name}/{number:06d}', found)
                    number += 1
                    bar.update()
            if not number:
                raise ValueError('the video cannot be read, or holds no frame')
