"""Bad data stops a run before its first iteration, with the file's name."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import run_tool
from mmengine.runner import Runner
from PIL import Image

from mmseg_eomt.data.check import LabelRule, files_of, problem_of
from mmseg_eomt.data.files import image_size


@pytest.fixture
def data(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / 'data'))


@pytest.fixture
def image(data) -> Path:
    return sorted(data.glob('leftImg8bit/train/*/*.png'))[0]


@pytest.fixture
def mask(data) -> Path:
    return sorted(data.glob('gtFine/train/*/*_labelTrainIds.png'))[0]


def train(small_config, data: Path, **changes) -> Runner:
    options = {f'{split}_dataloader.dataset.data_root': str(data) for split in ('train', 'val', 'test')}
    runner = Runner.from_cfg(small_config(max_iters=1, **options, **changes))
    runner.train()
    return runner


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_ids(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(ids).save(path)


BAD = {
    'image cut short': (lambda image, mask: cut_short(image), 'image', 'cannot be read'),
    'image is text': (lambda image, mask: image.write_text('not found'), 'image', 'cannot be read'),
    'empty image': (lambda image, mask: image.write_bytes(b''), 'image', 'empty file'),
    'mask cut short': (lambda image, mask: cut_short(mask), 'mask', 'cannot be read'),
    'no mask': (lambda image, mask: mask.unlink(), 'mask', 'the mask is missing'),
    'mask of another size': (
        lambda image, mask: write_ids(mask, np.zeros((32, 48), np.uint8)),
        'mask',
        'the mask is 48×32 pixels, but its image .* is 128×64',
    ),
    'unknown id': (
        lambda image, mask: write_ids(mask, np.full((64, 128), 19, np.uint8)),
        'mask',
        r'id 19 is neither a class \(0 to 18\) nor 255',
    ),
    'id beyond a byte': (  # the toolbox would read 256 as 0
        lambda image, mask: write_ids(mask, np.full((64, 128), 256, np.uint16)),
        'mask',
        'id 256 is neither',
    ),
    'colours': (lambda image, mask: cv2.imwrite(str(mask), np.zeros((64, 128, 3), np.uint8)), 'mask', 'holds colours'),
}


@pytest.mark.parametrize(('spoil', 'which', 'message'), BAD.values(), ids=BAD)
def test_it_stops_before_training_and_names_the_file(small_config, data, image, mask, spoil, which, message):
    spoil(image, mask)
    with pytest.raises(ValueError, match=message) as error:
        train(small_config, data)
    assert str(image if which == 'image' else mask) in str(error.value)
    assert '1 of 12 images' in str(error.value)
    assert not list(data.parent.glob('run/*.pth'))


def test_bad_validation_data_stops_it_too_and_a_file_lists_all(small_config, data):
    masks = sorted(data.glob('gtFine/val/*/*_labelTrainIds.png'))
    for path in masks:
        path.unlink()
    with pytest.raises(ValueError, match=f'{len(masks)} of 12 images') as error:
        train(small_config, data)
    listed = Path(re.search(r'All of them are in (\S+)\.$', str(error.value)).group(1)).read_text()
    assert all(str(path) in listed for path in masks)


def test_what_was_in_order_is_read_again_only_when_it_changes(small_config, data, mask, monkeypatch):
    read = []
    monkeypatch.setattr('mmseg_eomt.data.check.problem_of', lambda *file: read.append(file))
    train(small_config, data, name='first')
    assert len(read) == 12
    train(small_config, data, name='first')
    assert len(read) == 12
    write_ids(mask, np.zeros((64, 128), np.uint8))
    train(small_config, data, name='first')
    assert len(read) == 24


def test_it_can_be_left_out_and_the_step_then_names_the_file(small_config, data):
    masks = sorted(data.glob('gtFine/train/*/*_labelTrainIds.png'))
    for path in masks:
        write_ids(path, np.full((64, 128), 19, np.uint8))
    with pytest.raises(ValueError, match=r'neither below num_classes=19 .* They are in .*_labelTrainIds.png') as error:
        train(small_config, data, **{'default_hooks.data_check.splits': []})
    assert any(str(path) in str(error.value) for path in masks)


@pytest.mark.parametrize('kind', ['missing', 'empty', 'suffix'])
def test_a_folder_without_images_is_named(small_config, data, kind):
    folder = data / 'leftImg8bit' / 'train'
    shutil.rmtree(folder)
    if kind != 'missing':
        folder.mkdir()
    if kind == 'suffix':
        (folder / 'picture.jpg').write_bytes(b'x')
    message = 'is no folder' if kind == 'missing' else "holds no file that ends in '_leftImg8bit.png'"
    with pytest.raises(FileNotFoundError, match=message) as error:
        train(small_config, data)
    assert str(folder) in str(error.value)


def test_a_dataset_that_fails_with_an_empty_assertion_is_explained(small_config, tmp_path):
    changes = {
        'train_dataloader.dataset': dict(
            _delete_=True, type='PascalVOCDataset', data_root=str(tmp_path), ann_file='train.txt', pipeline=[]
        )
    }
    with pytest.raises(FileNotFoundError, match=r'train.txt \(ann_file of PascalVOCDataset\) is missing'):
        Runner.from_cfg(small_config(**changes)).train()


def test_two_processes_share_the_work_and_both_stop(small_config, config_file, data, mask):
    mask.unlink()
    options = {f'{split}_dataloader.dataset.data_root': str(data) for split in ('train', 'val', 'test')}
    done = run_tool('tools/dist_train.sh', config_file(small_config(max_iters=1, **options)), 2, PORT='29547', check=False)
    assert done.returncode
    assert f'{mask}: the mask is missing' in done.stdout
    assert 'Iter(train)' not in done.stdout


@pytest.mark.parametrize(
    ('index', 'change'),
    [(0, dict(backend_args=dict(backend='local'))), (1, dict(backend_args=dict(backend='local')))],
    ids=['images', 'masks'],
)
def test_what_comes_from_a_backend_is_left_to_it(small_config, data, image, mask, index, change):
    (image if index == 0 else mask).write_bytes(b'not a picture')
    config = small_config(max_iters=1)
    config.train_dataloader.dataset.data_root = str(data)
    config.train_dataloader.dataset.pipeline[index].update(change)
    runner = Runner.from_cfg(config)
    loader = Runner.build_dataloader(config.train_dataloader)
    paths = [file[:2] for file in files_of(loader.dataset, 19, 255)]
    assert (paths == []) if index == 0 else all(path[1] is None for path in paths)
    del runner


def test_the_heads_ignore_index_counts(small_config, data):
    for path in data.glob('gtFine/*/*/*_labelTrainIds.png'):
        write_ids(path, np.array(Image.open(path)).clip(0, 200))
    with pytest.raises(ValueError, match='id 200 is neither'):
        train(small_config, data, name='first')
    train(small_config, data, name='second', **{'model.decode_head.ignore_index': 200})


def test_ids_are_those_after_reduce_zero_label_and_label_map():
    ids = np.array([0, 1, 150, 151, 255])
    assert LabelRule(150, reduce_zero_label=True).unknown(ids) == [151]
    assert LabelRule(2, label_map={0: 255, 1: 0, 150: 1}).unknown(ids) == [151]
    assert LabelRule(150).unknown(ids) == [150, 151]
    assert LabelRule(3, 254, True).unknown(np.array([0, 1, 255])) == [0, 255]  # 255 is not what is ignored then
    assert LabelRule(3).unknown(np.array([2, 65535])) == []  # the toolbox reads a byte of it


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp'])
def test_a_phone_picture_lying_on_its_side_has_the_size_that_is_trained_on(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f'a{suffix}'
    Image.new('RGB', (40, 20)).save(path, exif=exif)
    assert image_size(path) == cv2.imread(str(path)).shape[:2] == (40, 20)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.bmp', '.webp'])
def test_whole_images_of_all_kinds_pass_and_cut_ones_do_not(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    assert problem_of(str(path), None, None) is None
    cut_short(path)
    assert 'cannot be read' in problem_of(str(path), None, None)
