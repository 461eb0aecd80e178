"""Scores of a split's images, kept in a file until the threshold is known that they are cut at."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mmseg_eomt.anomaly.metrics.counts import IGNORED


@dataclass(frozen=True)
class Image:
    """What counts of a predicted image.

    Attributes:
        scores: (E, N), E scores of the N pixels that are not ignored.
        labels: (H, W), uint8.
        path: Of its file, for errors.
    """

    scores: Tensor
    labels: Tensor
    path: str

    @classmethod
    def of(cls, maps: Tensor, labels: Tensor, path: str) -> 'Image':
        """Leave out of score maps (E, H, W) what labels (H, W) ignore."""
        return cls(maps[:, labels != IGNORED], labels.to(torch.uint8), path)

    @property
    def counted(self) -> Tensor:
        """Where the labels are not ignored: (H, W), bool."""
        return self.labels != IGNORED


class KeptImages:
    """Images in a temporary file, 4 bytes for each score of a pixel that counts.

    The file has no name, so that nothing is left of it when the process ends, however it ends. ``TMPDIR`` says where it is.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def append(self, image: Image) -> None:
        """Keep an image."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by clear
        np.save(self._file, image.scores.cpu().numpy())
        np.save(self._file, image.labels.cpu().numpy())

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Score maps (E, H, W), float32, −∞ where pixels are ignored, and labels (H, W) of each image, in their order."""
        if self._file is None:
            return
        end = self._file.tell()
        self._file.seek(0)
        while self._file.tell() < end:
            scores, labels = np.load(self._file), np.load(self._file)
            maps = np.full((len(scores), *labels.shape), -np.inf, np.float32)
            maps[:, labels != IGNORED] = scores
            yield maps, labels

    def clear(self) -> None:
        """Forget all images and delete the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
