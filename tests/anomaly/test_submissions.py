"""Files as SegmentMeIfYouCan and BRAVO take them."""

import builtins
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_eomt.anomaly.results.maps import limits_of
from mmseg_eomt.anomaly.results.submissions import BravoWriter, SmiycWriter, check_images
from mmseg_eomt.anomaly.scores import Score
from mmseg_eomt.commands import predict

h5py = pytest.importorskip('h5py')
RBA = limits_of(Score.parse('rba'), 19)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


@pytest.fixture(scope='module')
def config(base) -> Path:
    return next(Path(base).parent.glob('*.py'))


@pytest.fixture
def inputs(scenes, tmp_path) -> Path:
    """Images in the folders of a benchmark."""
    folder = tmp_path / 'in'
    for i, path in enumerate(sorted((scenes / 'leftImg8bit/val').rglob('*.png'))[:2]):
        place = folder / f'bravo_SMIYC/RoadAnomaly21/images/validation000{i}.png'
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


def run(*args: object) -> None:
    predict.main([*map(str, args)])


def test_smiyc_gets_a_float16_map_of_each_frame_with_sure_inliers_at_0(config, base, inputs, tmp_path):
    common = (config, base, inputs, '--anomaly', 'rba')
    run(*common, '--format', 'smiyc', '--dataset', 'AnomalyTrack-all', '--method', 'EoMT-RbA', '--out', tmp_path / 'out')
    run(*common, '--score-format', 'npy', '--out', tmp_path / 'plain')
    place = 'anomaly_p/EoMT-RbA/AnomalyTrack-all'
    assert files(tmp_path / 'out') == [f'{place}/validation0000.hdf5', f'{place}/validation0001.hdf5']
    for file in files(tmp_path / 'out'):
        with h5py.File(tmp_path / 'out' / file) as content:
            assert list(content) == ['value'] and content['value'].compression == 'gzip'
            values = content['value'][:]
        assert values.dtype == np.float16 and values.shape == (64, 128)
        name = f'bravo_SMIYC/RoadAnomaly21/images/{Path(file).stem}'
        scores = np.load(tmp_path / f'plain/anomaly/scores/{name}.npy')
        assert np.abs(values / (scores - RBA.inlier) - 1).max() < 1e-3


def test_shifted_float16_ranks_as_the_scores_do_and_others_tie(tmp_path):
    scores = RBA.inlier + np.linspace(0, 1e-3, 4096, dtype=np.float64).astype(np.float32).reshape(64, 64)
    SmiycWriter(tmp_path, 'm', 'd', RBA).write('a/b', np.zeros((64, 64), np.uint8), scores)
    with h5py.File(tmp_path / 'anomaly_p/m/d/b.hdf5') as content:
        values = content['value'][:]
    assert len(np.unique(values)) > 1000 > 10 > len(np.unique(scores.astype(np.float16)))
    assert (np.diff(values.ravel()) >= 0).all()


def test_bravo_gets_class_ids_and_16_bit_confidences_in_the_folders_of_the_images(config, base, inputs, tmp_path):
    common = (config, base, inputs, '--anomaly', 'max')
    run(*common, '--format', 'bravo', '--out', tmp_path / 'out')
    run(*common, '--score-format', 'npy', '--out', tmp_path / 'plain')
    folder = 'bravo_SMIYC/RoadAnomaly21/images'
    expected = [f'{folder}/validation000{i}_{kind}.png' for i in range(2) for kind in ('conf', 'pred')]
    assert files(tmp_path / 'out/bravo') == expected and files(tmp_path / 'out') == [f'bravo/{name}' for name in expected]
    for i in range(2):
        name = f'{folder}/validation000{i}'
        labels, confidence = (
            cv2.imread(str(tmp_path / f'out/bravo/{name}_{kind}.png'), cv2.IMREAD_UNCHANGED) for kind in ('pred', 'conf')
        )
        assert labels.dtype == np.uint8 and confidence.dtype == np.uint16
        assert (labels == cv2.imread(str(tmp_path / f'plain/labels/{name}.png'), cv2.IMREAD_UNCHANGED)).all()
        best = 1 - np.load(tmp_path / f'plain/anomaly/scores/{name}.npy').astype(np.float64)  # of max: the largest score
        assert (confidence == np.minimum(np.floor(best.clip(0, 1) * 65536), 65535)).all()


def test_the_confidence_is_1_for_a_sure_inlier_and_0_without_any_class(tmp_path):
    scores = np.array([[RBA.low, RBA.inlier, RBA.inlier / 2, 0, 1]], np.float32)
    BravoWriter(tmp_path, RBA).write('a', np.zeros((1, 5), np.uint8), scores)
    confidence = cv2.imread(str(tmp_path / 'bravo/a_conf.png'), cv2.IMREAD_UNCHANGED)
    assert confidence[0].tolist() == [65535, 65535, 32768, 0, 0]


def test_videos_and_frames_of_one_name_are_refused():
    with pytest.raises(ValueError, match='--format bravo takes images, and a video is among the inputs'):
        check_images([('a', False), ('b', True)], 'bravo')
    with pytest.raises(ValueError, match='by their file name alone, and 1 is there 2 times'):
        check_images([('a/1', False), ('b/1', False)], 'smiyc')
    check_images([('a/1', False), ('b/1', False)], 'bravo')


def test_without_h5py_the_command_that_installs_it_is_named(config, base, inputs, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == 'h5py':
            raise ModuleNotFoundError("No module named 'h5py'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(SystemExit, match=r"predict: .*No module named 'h5py'.*: run pip install h5py"):
        run(config, base, inputs, '--anomaly', 'rba', '--format', 'smiyc', '--dataset', 'a', '--out', tmp_path)
