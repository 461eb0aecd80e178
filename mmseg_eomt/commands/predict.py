"""Label maps and pictures of images, folders and videos.

    python tools/predict.py CONFIG CHECKPOINT INPUT… [--out DIR]

For each image, DIR/labels/NAME.png has the class ids in one channel, in the image's size, and DIR/overlays/NAME.png the
classes' colours over the image with a legend. A folder is read with its subfolders, whose names are kept. A video gives
DIR/overlays/NAME.mp4, and its frames' ids in DIR/labels/NAME/.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import DictAction
from mmseg.apis import inference_model
from PIL import Image
from tqdm import tqdm

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.data.images import DEFAULT_READER, IMAGE_TYPES, files_in, inspect_image
from mmseg_eomt.inference import load_model
from mmseg_eomt.visualization import overlay, with_legend
from mmseg_eomt.whole import check_writable, whole_file

VIDEO_TYPES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with errors_in_a_sentence('predict'):
        inputs = find_inputs(args.inputs, args.out)
        for name in ('overlays', 'labels'):
            check_writable(args.out / name)
        failed = predict(inputs, Predictor(args), args.batch_size)
    if len(failed) < len(inputs):
        print(f'Wrote {args.out / "overlays"} and {args.out / "labels"}')
    if failed:
        sys.exit('\n  '.join([f'predict: {len(failed)} of {len(inputs)} inputs could not be predicted:', *failed]))


def predict(inputs: list[tuple[Path, str]], predictor: 'Predictor', batch_size: int) -> list[str]:
    """Write the results of all inputs; a sentence for each that has none."""
    failed: list[str] = []
    images = [item for item in inputs if not is_video(item[0])]
    with tqdm(total=len(images), desc='Images', unit='images', disable=not images) as bar:
        for sources, batch in batches(read_images(images, failed), batch_size):
            for (path, name), image, labels in zip(sources, batch, predictor.labels(batch)):
                if isinstance(labels, str):
                    failed.append(f'{path}: {labels}')
                else:
                    predictor.save(name, image, labels)
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
    parser.add_argument('inputs', type=Path, nargs='+', metavar='INPUT', help='images, folders of images, videos')
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder of the results (predictions)')
    parser.add_argument('--batch-size', type=int, default=4, help='images of one size at a time (4)')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the colours, from 0 to 1 (0.5)')
    parser.add_argument('--device', help='such as cuda:1 or cpu (a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='settings of the config to change'
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1 or not 0 <= args.opacity <= 1:
        parser.error(f'--batch-size is 1 or more and --opacity from 0 to 1, got {args.batch_size} and {args.opacity}')
    return args


class Predictor:
    """The model, and how its results are written."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = load_model(args.config, args.checkpoint, args.device, args.cfg_options)
        self.classes, self.palette = (list(self.model.dataset_meta[name]) for name in ('classes', 'palette'))

    def labels(self, images: list[np.ndarray]) -> list[np.ndarray | str]:
        """Class ids (H, W) of images (H, W, 3), BGR, of one size; a sentence for one that cannot be predicted."""
        try:
            results = inference_model(self.model, images)
        except Exception as error:  # of any library; such as an image of one row, of which resizing leaves none
            if len(images) > 1:  # too many for the memory, perhaps
                return [labels for image in images for labels in self.labels([image])]
            height, width = images[0].shape[:2]
            return [f'there is no prediction of {width}×{height} pixels ({str(error).strip() or type(error).__name__})']
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return [result.pred_sem_seg.data[0].cpu().numpy().astype(dtype) for result in results]

    def picture(self, image: np.ndarray, labels: np.ndarray, named: list[int]) -> np.ndarray:
        """BGR image under its labels, with the names of some classes."""
        coloured = overlay(image[..., ::-1], labels, self.palette, self.args.opacity)
        return with_legend(coloured, self.classes, self.palette, named)[..., ::-1]

    def save(self, name: str, image: np.ndarray, labels: np.ndarray) -> None:
        """Write an image's labels and picture."""
        write(self.args.out / 'labels' / f'{name}.png', labels)
        write(self.args.out / 'overlays' / f'{name}.png', self.picture(image, labels, np.unique(labels).tolist()))

    def video(self, path: Path, name: str) -> None:
        """Write a video's overlay and its frames' labels.

        Raises:
            ValueError: If it cannot be read or predicted, or there is no encoder.
        """
        video = cv2.VideoCapture(str(path))
        rate = video.get(cv2.CAP_PROP_FPS) or 25
        number, writer = 0, None
        total = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
        out = whole_file(self.args.out / 'overlays' / f'{name}.mp4')
        with out as new, tqdm(total=total, desc=path.name, unit='frames') as bar:
            frames = (((None, None), frame) for frame in read_frames(video))
            for _, images in batches(frames, self.args.batch_size):
                for image, labels in zip(images, self.labels(images)):
                    if isinstance(labels, str):
                        raise ValueError(labels)
                    # all classes are named: the legend must not change from frame to frame
                    picture = self.picture(image, labels, list(range(len(self.classes))))
                    height, width = (side - side % 2 for side in picture.shape[:2])  # encoders take even sides
                    if writer is None:
                        writer = cv2.VideoWriter(str(new), cv2.VideoWriter.fourcc(*'mp4v'), rate, (width, height))
                        if not writer.isOpened():
                            raise ValueError('its overlay could not be written: OpenCV has no mp4 encoder here')
                    writer.write(np.ascontiguousarray(picture[:height, :width]))
                    write(self.args.out / 'labels' / name / f'{number:06d}.png', labels)
                    number += 1
                    bar.update()
            if writer is None:
                raise ValueError('the video cannot be read, or holds no frame')
            writer.release()


def find_inputs(given: list[Path], out: Path) -> list[tuple[Path, str]]:
    """Files to read, with the names of their results. Where these lie in a folder that is given, they are no input.

    Raises:
        ValueError: If one is missing or of no known type, a folder is empty, or two would have one name.
    """
    inputs: dict[str, Path] = {}
    for path in given:
        for file in find_files(path, out):
            whole = file.relative_to(path if path.is_dir() else path.parent)
            name = whole.with_suffix('').as_posix()
            if name in inputs and inputs[name].suffix != file.suffix:  # 1.jpg and 1.png
                name = whole.as_posix()
            if name in inputs:
                raise ValueError(
                    f'{inputs[name]} and {file} would both be written to {name}: give them one after the other.'
                )
            inputs[name] = file
    return [(file, name) for name, file in inputs.items()]


def find_files(path: Path, out: Path) -> list[Path]:
    """A file, or all images and videos in a folder but those in the results below ``out``."""
    types = (*IMAGE_TYPES, *VIDEO_TYPES)
    if path.is_file():
        if path.suffix.lower() not in types:
            raise ValueError(f'{path} is no image ({" ".join(IMAGE_TYPES)}) and no video ({" ".join(VIDEO_TYPES)}).')
        return [path]
    if not path.is_dir():
        raise ValueError(f'{path} does not exist.')
    found = files_in(path, types)
    results = {(out / name).resolve() for name in ('labels', 'overlays')} - {path.resolve(), *path.resolve().parents}
    files = [file for file in found if results.isdisjoint(file.resolve().parents)]
    if len(files) < len(found):
        print(f'{len(found) - len(files)} files of {path} lie in {out}, where results are written: they are skipped.')
    if not files:
        raise ValueError(f'{path} holds no image and no video.')
    return files


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_TYPES


def read_images(inputs: list[tuple[Path, str]], failed: list[str]) -> Iterator[tuple[tuple[Path, str], np.ndarray]]:
    """Images (H, W, 3), BGR, with their inputs; what cannot be read is noted in ``failed``."""
    for path, name in inputs:
        try:
            inspect_image(path)
            image = DEFAULT_READER.read(path)
        except ValueError as error:
            failed.append(str(error))
        else:
            yield (path, name), image


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Frames (H, W, 3), BGR, of a video."""
    while True:
        there, frame = video.read()
        if not there:
            return
        yield frame


def batches(items: Iterator, size: int) -> Iterator[tuple[list, list]]:
    """Inputs and images, as many at a time as are of one size, up to ``size``."""
    inputs: list = []
    images: list = []
    for source, image in items:
        if images and (len(images) == size or image.shape != images[0].shape):
            yield inputs, images
            inputs, images = [], []
        inputs.append(source)
        images.append(image)
    if images:
        yield inputs, images


def write(path: Path, image: np.ndarray) -> None:
    """Write a PNG."""
    with whole_file(path) as new:
        Image.fromarray(np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image).save(new)
