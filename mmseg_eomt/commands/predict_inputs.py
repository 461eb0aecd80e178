"""What is predicted: images and videos among files and folders, in batches of one size; and how pictures are written."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mmseg_eomt.data.images import DEFAULT_READER, IMAGE_TYPES, files_in, inspect_image
from mmseg_eomt.whole import whole_file

VIDEO_TYPES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')
RESULTS = ('labels', 'overlays', 'anomaly/scores', 'anomaly/heatmaps', 'anomaly/masks', 'anomaly_p', 'bravo')  # folders


def find_inputs(given: list[Path], *outs: Path) -> list[tuple[Path, str]]:
    """Files to read, with the names of their results. Where these lie in a folder that is given, they are no input.

    Raises:
        ValueError: If one is missing or of no known type, a folder is empty, or two would have one name.
    """
    inputs: dict[str, Path] = {}
    for path in given:
        for file in find_files(path, *outs):
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


def find_files(path: Path, *outs: Path) -> list[Path]:
    """A file, or all images and videos in a folder but those in the results below ``outs``."""
    types = (*IMAGE_TYPES, *VIDEO_TYPES)
    if path.is_file():
        if path.suffix.lower() not in types:
            raise ValueError(f'{path} is no image ({" ".join(IMAGE_TYPES)}) and no video ({" ".join(VIDEO_TYPES)}).')
        return [path]
    if not path.is_dir():
        raise ValueError(f'{path} does not exist.')
    found = files_in(path, types)
    results = {(out / name).resolve() for out in outs for name in RESULTS} - {path.resolve(), *path.resolve().parents}
    files = [file for file in found if results.isdisjoint(file.resolve().parents)]
    if len(files) < len(found):
        places = ' and '.join(map(str, outs))
        print(f'{len(found) - len(files)} files of {path} lie in {places}, where results are written: they are skipped.')
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


class Films:
    """Videos that are written whole, one in each of some folders, frame by frame.

    Args:
        folders: Where they go.
        name: Of the file in each, without ``.mp4``.
        rate: Frames per second.
    """

    def __init__(self, folders: Sequence[Path], name: str, rate: float) -> None:
        self.rate = rate
        self.places = {folder: folder / f'{name}.mp4' for folder in folders}
        self.writers: dict[Path, cv2.VideoWriter] = {}
        self.stack = ExitStack()

    def __enter__(self) -> 'Films':
        self.new = {folder: self.stack.enter_context(whole_file(path)) for folder, path in self.places.items()}
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self.writers.values():
            writer.release()
        self.stack.__exit__(*error)

    def add(self, folder: Path, picture: np.ndarray) -> None:
        """Write a frame (H, W, 3), BGR.

        Raises:
            ValueError: If there is no encoder.
        """
        height, width = (side - side % 2 for side in picture.shape[:2])  # encoders take even sides
        if folder not in self.writers:
            writer = cv2.VideoWriter(str(self.new[folder]), cv2.VideoWriter.fourcc(*'mp4v'), self.rate, (width, height))
            if not writer.isOpened():
                raise ValueError('its overlay could not be written: OpenCV has no mp4 encoder here')
            self.writers[folder] = writer
        self.writers[folder].write(np.ascontiguousarray(picture[:height, :width]))
