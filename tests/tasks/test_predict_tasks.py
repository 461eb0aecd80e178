"""tools/predict.py --tasks: each task's label maps and pictures in its own folder."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_eomt.commands import predict

pytest_plugins = ['small_tasks']


@pytest.fixture
def config(tasks_config, config_file) -> Path:
    return config_file(tasks_config())


@pytest.fixture
def folder(scenes) -> Path:
    return scenes / 'leftImg8bit' / 'val' / 'day'


def test_each_tasks_labels_are_those_of_its_own_model(
    in_process, config, small_config, config_file, checkpoints, folder, tmp_path
):
    log = in_process(predict.main, config, folder, '--tasks', 'all', '--out', tmp_path / 'out')
    assert f'Wrote {tmp_path}/out/day and {tmp_path}/out/dusk' in log
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['day', 'dusk', 'night', 'signs']
    for name, checkpoint in checkpoints.items():
        options = {'model.decode_head.num_classes': 3} if name == 'signs' else {}
        if name == 'signs':
            options['test_dataloader.dataset.metainfo'] = dict(classes=['none', 'sign', 'pole'])
        own = config_file(small_config(name=name, **{'model.test_cfg.mode': 'whole', **options}))
        in_process(predict.main, own, checkpoint, folder, '--out', tmp_path / 'alone' / name)
        for path in sorted((tmp_path / 'alone' / name / 'labels').rglob('*.png')):
            given, expected = (np.array(Image.open(p)) for p in (tmp_path / 'out' / name / 'labels' / path.name, path))
            assert (given == expected).mean() > 0.999  # adapters are merged there
    picture = np.array(Image.open(next((tmp_path / 'out' / 'signs' / 'overlays').glob('*.png'))))
    assert picture.shape[1] > 128  # the legend


def test_a_video_gives_a_video_of_each_task_that_is_asked_for(in_process, config, images, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'drive.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 64))
    for image in images:
        writer.write(image)
    writer.release()
    in_process(predict.main, config, tmp_path / 'drive.avi', '--tasks', 'dusk', 'signs', '--out', tmp_path / 'out')
    for task in ('dusk', 'signs'):
        video = cv2.VideoCapture(str(tmp_path / 'out' / task / 'overlays' / 'drive.mp4'))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == len(images)
        assert len(list((tmp_path / 'out' / task / 'labels' / 'drive').iterdir())) == len(images)
    assert not (tmp_path / 'out' / 'day').exists()


def test_wrong_tasks_are_refused_in_a_sentence(in_process, config, small_config, config_file, lora, folder, tmp_path):
    plain = config_file(small_config(lora=True))
    for arguments, message in (
        ((config, folder, '--tasks', 'dsuk'), "no task 'dsuk': the tasks are day, dusk, night, signs"),
        ((config, folder, '--tasks', 'all', folder), "no task 'all': the tasks are day"),
        ((plain, folder, '--tasks', 'all'), 'run.py has no tasks'),
        ((config, lora, folder), 'The config has the tasks day, dusk, night, signs: omit CHECKPOINT and add --tasks all'),
    ):
        assert message in in_process(predict.main, *arguments, '--out', tmp_path / 'out', check=False)
    assert not (tmp_path / 'out').exists()
