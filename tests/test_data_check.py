"""Bad data stops a run before its first iteration, with the file's name."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import free_port, run_tool
from mmengine.runner import Runner
from PIL import Image
from test_data_files import cut_short, turn, write_ids

from mmseg_eomt.data.check import Finding, LabelRule, samples_of


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
    monkeypatch.setattr('mmseg_eomt.data.check.check_sample', lambda file: read.append(file) or Finding())
    train(small_config, data, name='first')
    assert len(read) == 12
    train(small_config, data, name='first')
    assert len(read) == 12
    write_ids(mask, np.zeros((64, 128), np.uint8))
    train(small_config, data, name='first')
    assert len(read) == 12 + 8  # the training images again


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
    config = config_file(small_config(max_iters=1, **options))
    done = run_tool('tools/dist_train.sh', config, 2, PORT=free_port(), check=False)
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
    paths = [file[:2] for file in samples_of(loader.dataset, 19, 255)]
    assert (paths == []) if index == 0 else all(path[1] is None for path in paths)
    del runner


def test_what_is_ignored_is_the_losss_in_training_and_the_metrics_in_evaluation(small_config, data):
    for path in data.glob('gtFine/*/*/*_labelTrainIds.png'):
        write_ids(path, np.array(Image.open(path)).clip(0, 200))
    with pytest.raises(ValueError, match=r'12 of 12 images .*\n.*id 200 is neither'):
        train(small_config, data, name='first')
    ignored = {'model.decode_head.ignore_index': 200}
    with pytest.raises(ValueError, match='4 of 12 images'):  # IoUMetric would count 200 as a wrong prediction
        train(small_config, data, name='second', **ignored)
    train(small_config, data, name='third', **ignored, **{'val_evaluator.ignore_index': 200})


def test_ids_are_those_after_reduce_zero_label_and_label_map():
    ids = np.array([0, 1, 150, 151, 255])
    assert LabelRule(150, reduce_zero_label=True).unknown(ids) == [151]
    assert LabelRule(2, label_map={0: 255, 1: 0, 150: 1}).unknown(ids) == [151]
    assert LabelRule(150).unknown(ids) == [150, 151]
    assert LabelRule(3, 254, True).unknown(np.array([0, 1, 255])) == [0, 255]  # 255 is not what is ignored then
    assert LabelRule(3).unknown(np.array([2, 65535])) == []  # the toolbox reads a byte of it


def evaluate(small_config, data: Path, **changes) -> dict:
    changes = {'test_dataloader.dataset.data_root': str(data), 'train_dataloader': None, 'val_dataloader': None, **changes}
    changes.update(train_cfg=None, val_cfg=None, val_evaluator=None, optim_wrapper=None, param_scheduler=None)
    config = small_config(name=changes.pop('name', 'test'))
    config.update({name: changes.pop(name) for name in list(changes) if '.' not in name})
    config.merge_from_dict(changes)
    return Runner.from_cfg(config).test()


@pytest.mark.parametrize('kind', ['image cut short', 'mask of another size', 'unknown id', 'colours'])
def test_a_test_is_stopped_by_the_same_data(small_config, data, kind):
    spoil, which, message = BAD[kind]
    files = dict(image=min(data.glob('leftImg8bit/val/*/*.png')), mask=min(data.glob('gtFine/val/*/*_labelTrainIds.png')))
    spoil(**files)
    with pytest.raises(ValueError, match=message) as error:
        evaluate(small_config, data)
    assert '1 of 4 images' in str(error.value) and str(files[which]) in str(error.value)


def test_a_test_reads_what_the_training_has_checked_no_more(small_config, data, monkeypatch):
    read = []
    monkeypatch.setattr('mmseg_eomt.data.check.check_sample', lambda file: read.append(file) or Finding())
    train(small_config, data, name='run')
    evaluate(small_config, data, name='run')
    assert len(read) == 12


def test_a_test_without_ground_truth_writes_its_predictions(small_config, data, tmp_path):
    shutil.rmtree(data / 'gtFine')
    steps = [step for step in small_config().test_dataloader.dataset.pipeline if step['type'] != 'LoadAnnotations']
    evaluator = dict(type='IoUMetric', format_only=True, output_dir=str(tmp_path / 'out'))
    images = dict(_delete_=True, img_path='leftImg8bit/val')
    changes = {'test_dataloader.dataset.pipeline': steps, 'test_dataloader.dataset.data_prefix': images}
    evaluate(small_config, data, test_evaluator=evaluator, **changes)
    assert len(list((tmp_path / 'out').glob('*.png'))) == 4


def test_masks_are_found_inside_of_test_time_augmentation(small_config):
    loader = small_config().test_dataloader
    first, resize, load, pack = loader.dataset.pipeline
    loader.dataset.pipeline = [first, dict(type='TestTimeAug', transforms=[[resize], [load], [pack]])]
    files = list(samples_of(Runner.build_dataloader(loader).dataset, 19, 255))
    assert len(files) == 4 and all(file.mask and file.rule for file in files)


def test_images_that_the_reader_turns_are_counted_in_each_run(small_config, data, capfd):
    image = min(data.glob('leftImg8bit/val/*/*.png'))
    turn(image, 3)
    for _ in range(2):  # the second reads no file again
        evaluate(small_config, data)
        said = capfd.readouterr()
        assert '1 images carry an Exif orientation, which the reader applies' in said.out + said.err
        assert f'For 1 of them no size shows whether the mask fits (the first: {image})' in said.out + said.err


def test_a_name_that_a_list_cannot_hold_is_explained(small_config, data):
    for path in sorted(data.glob('leftImg8bit/train/day/*'))[:2]:
        path.rename(data / f'{path.stem[0]}{path.stem[-16:-12]} .png')
    names = [path.stem for path in data.glob('*.png')]
    (data / 'list.txt').write_text('\n'.join(names))
    dataset = dict(_delete_=True, type='CityscapesDataset', data_root=str(data), ann_file='list.txt', img_suffix='.png')
    dataset['pipeline'] = [dict(type='LoadImageFromFile')]
    with pytest.raises(ValueError, match=r"is missing; '.* \.png' is there, but lists \(ann_file\) lose the blank"):
        train(small_config, data, **{'train_dataloader.dataset': dict(dataset, data_prefix=dict(img_path=''))})
