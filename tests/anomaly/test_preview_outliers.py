"""The sheet of pasted outliers, as a user makes it before training."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import run_tool
from outlier_files import write_cutouts
from PIL import Image

from mmseg_eomt.commands.preview_outliers import CONTOUR, cut_pipelines, main


@pytest.fixture
def config_with(small_config, config_file):
    """Write a config that pastes outliers of a source."""

    def write(source: dict | None, **options: object) -> Path:
        config = small_config()
        pipeline = config.train_dataloader.dataset.pipeline
        steps = [dict(type='PasteOutliers', source=source, min_pixels=9, size=(0.2, 0.5), **options)] if source else []
        config.train_dataloader.dataset.pipeline = [*pipeline[:2], *steps, *pipeline[2:]]
        return config_file(config)

    return write


def contours(path: Path) -> int:
    return int((np.array(Image.open(path)) == CONTOUR).all(-1).sum())


def test_the_sheet_shows_outliers_and_the_numbers_add_up(config_with, tmp_path):
    config, out = config_with(dict(type='TrainingPatches'), prob=0.01), tmp_path / 'new' / 'sheet.png'
    log = run_tool('tools/preview_outliers.py', config, '--out', out, '--number', 2, '--images', 10).stdout
    ground, anywhere = map(int, re.search(r'\((\d+) on the ground, (\d+) anywhere\)', log).groups())
    assert f'Outliers placed: {ground + anywhere} ' in log and ground + anywhere >= 8
    failed = int(re.search(r'Outliers not placed: (\d+)', log).group(1))
    assert 10 <= ground + anywhere + failed <= 30
    assert sum(map(int, re.findall(r'(?:blob|polygon|box) (\d+)', log))) == ground + anywhere
    assert 'Images: 10' in log and re.search(r'Longer side, of the image height: \d+\.\d% to \d+\.\d%, median', log)
    assert contours(out) > 100


def test_options_of_the_config_may_be_changed(config_with, tmp_path, capsys):
    config = config_with(dict(type='TrainingPatches'))
    folder = write_cutouts(tmp_path / 'cutouts')
    step = 'train_dataloader.dataset.pipeline.2'
    options = [f'{step}.source.type=CutoutFolder', f'{step}.source.folder={folder}', f'{step}.where=any']
    main([str(config), '--out', str(tmp_path / 'sheet.png'), '--images', '6', '--cfg-options', *options])
    said = capsys.readouterr().out
    assert 'CutoutFolder' in said and '(0 on the ground' in said and re.search(r'Kinds: (disc|box) \d', said)


def test_where_nothing_finds_a_place_it_says_so_and_shows_the_images(config_with, tmp_path, capsys):
    config = config_with(dict(type='TrainingPatches'), where=['train'], any_prob=0.0)
    main([str(config), '--out', str(tmp_path / 'sheet.png'), '--images', '4', '--number', '1'])
    said = capsys.readouterr().out
    assert 'Outliers placed: 0 ' in said and '(100.0%)' in said and 'Nothing could be placed' in said
    assert contours(tmp_path / 'sheet.png') == 0


def test_a_config_that_pastes_nothing_is_told_how(config_with, tmp_path):
    with pytest.raises(SystemExit, match=r'has no PasteOutliers: add dict\(type=.* after LoadAnnotations'):
        main([str(config_with(None)), '--out', str(tmp_path / 'sheet.png')])


def test_a_source_that_is_not_there_ends_in_a_sentence(config_with, tmp_path):
    with pytest.raises(SystemExit, match=r'preview_outliers: .*There is no folder /nowhere to take outliers from'):
        main([str(config_with(dict(type='CutoutFolder', folder='/nowhere'))), '--out', str(tmp_path / 'sheet.png')])


def test_pipelines_of_wrapped_datasets_end_at_pasting():
    def dataset(prob: float) -> dict:
        return dict(type='X', pipeline=[dict(type='A'), dict(type='PasteOutliers', prob=prob), dict(type='B')])

    other = dict(type='X', pipeline=[dict(type='A')])
    wrapped = dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', dataset=dataset(0.1), times=2), other])
    cut, found = cut_pipelines(wrapped)
    assert found == [dict(type='PasteOutliers', prob=0.1)]
    assert cut['datasets'][0]['dataset']['pipeline'] == [dict(type='A'), dict(type='PasteOutliers', prob=1.0)]
    assert cut['datasets'][1] == other
