"""Files as two benchmarks take them: SegmentMeIfYouCan's HDF5 maps, and BRAVO's pairs of PNG."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mmseg_eomt.anomaly.results.maps import Limits
from mmseg_eomt.whole import whole_file

FORMATS = ('smiyc', 'bravo')


class SmiycWriter:
    """``anomaly_p/METHOD/DATASET/FRAME.hdf5``, each with a float16 map ``value``, the higher the more anomalous.

    The score of sure inliers is subtracted first: float16 has most digits around 0, and without that FPR95 can double.

    Args:
        out: The folder above ``anomaly_p``: ``outputs`` of their toolbox.
        method: Name of the method.
        dataset: As ``'AnomalyTrack-all'``, ``'ObstacleTrack-all'``, ``'LostAndFound-test'``, ``'LostAndFound-train'``.
        limits: Of the score.

    Raises:
        ImportError: If h5py is missing.

    Source: SegmentMeIfYouCan/road-anomaly-benchmark, ``evaluation.py`` and ``datasets/dataset_io.py``.
    """

    def __init__(self, out: Path, method: str, dataset: str, limits: Limits) -> None:
        check_h5py()
        self.folder = out / 'anomaly_p' / method / dataset
        self.inlier = limits.inlier

    def write(self, name: str, labels: np.ndarray, scores: np.ndarray) -> None:
        """Write an image's scores (H, W); its frame is the last part of its name."""
        import h5py

        frame = PurePosixPath(name).name
        with whole_file(self.folder / f'{frame}.hdf5') as new, h5py.File(new, 'w') as file:
            shifted = (scores.astype(np.float64) - self.inlier).astype(np.float16)
            file.create_dataset('value', data=shifted, compression='gzip', compression_opts=9)


class BravoWriter:
    """``NAME_pred.png``, the class ids in 8 bits, and ``NAME_conf.png``, the confidence in 16 bits, in the images' folders.

    The confidence is 1 where a model is sure of one class, and 0 where the score is as high as it gets.

    Args:
        out: The folder of the results is ``bravo`` in it.
        limits: Of the score.

    Source: valeoai/bravo_challenge, README (formats, names, and the formula to 16 bits).
    """

    def __init__(self, out: Path, limits: Limits) -> None:
        self.folder = out / 'bravo'
        self.limits = limits

    def write(self, name: str, labels: np.ndarray, scores: np.ndarray) -> None:
        """Write an image's class ids (H, W) and scores (H, W).

        Raises:
            ValueError: If the class ids need more than 8 bits.
        """
        if labels.dtype != np.uint8:
            raise ValueError(f'class ids have 8 bits, and these are {labels.dtype}')
        confidence = 1 - (scores.astype(np.float64) - self.limits.inlier) / (self.limits.high - self.limits.inlier)
        steps = np.floor(confidence.clip(0, 1) * 2**16).clip(max=2**16 - 1).astype(np.uint16)
        for kind, values in dict(pred=labels, conf=steps).items():
            with whole_file(self.folder / f'{name}_{kind}.png') as new:
                Image.fromarray(values).save(new)


def check_h5py() -> None:
    """Raise an ImportError with the repairing command if h5py is missing."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'The files of SegmentMeIfYouCan need a package that is missing ({error}): run pip install h5py, or '
            f'pip install "mmseg-eomt[anomaly]"'
        ) from None


def check_images(names: Sequence[tuple[str, bool]], kind: str) -> None:
    """Raise ValueError if a format cannot be written of some inputs: name of the results, and whether it is a video."""
    if any(video for _, video in names):
        raise ValueError(f'--format {kind} takes images, and a video is among the inputs.')
    frames = Counter(PurePosixPath(name).name for name, _ in names)
    twice = [frame for frame, number in frames.items() if number > 1]
    if kind == 'smiyc' and twice:
        raise ValueError(f'Frames are told by their file name alone, and {twice[0]} is there {frames[twice[0]]} times.')
