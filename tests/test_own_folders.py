"""Folders as users have them: links, splits by name, and runs of init_dataset.py that were killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, small_recipe
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from PIL import Image
from test_init_dataset import ids, init_dataset, made  # noqa: F401  a fixture

from mmseg_eomt.commands.own_data.pairing import list_images
from mmseg_eomt.commands.predict import find_inputs
from mmseg_eomt.data.images import files_in


def lists() -> list[list[str]]:
    """Names in train.txt and val.txt."""
    return [Path(f'data/my_data/{part}.txt').read_text().split() for part in ('train', 'val')]


def linked(folder: Path, name: str, target: Path) -> None:
    (folder / name).symlink_to(target, target_is_directory=target.is_dir())


def test_linked_folders_are_followed_and_links_upwards_end(tmp_path):
    images, _ = made(tmp_path / 'here', {'a/1': ids(0), '2': ids(0)})
    elsewhere, _ = made(tmp_path / 'there', {'x/3': ids(0)})
    linked(images, 'train', elsewhere)
    linked(images, '5.jpg', elsewhere / 'x' / '3.jpg')
    for folder, name, target in (
        (images, 'self', images),
        (images, 'up', tmp_path / 'here'),
        (images / 'a', 'loop', images / 'a'),
        (elsewhere / 'x', 'back', images),
    ):
        linked(folder, name, target)
    expected = ['2.jpg', '5.jpg', 'a/1.jpg', 'train/x/3.jpg']
    assert list_images(images) == expected
    linked(tmp_path, 'link', images)
    assert list_images(tmp_path / 'link') == expected
    assert list_images(elsewhere) == ['x/3.jpg', *(f'x/back/{name}' for name in expected[:-1])]


def test_hidden_files_and_what_a_killed_process_left_are_ignored(tmp_path):
    images, _ = made(tmp_path, {name: ids(0) for name in ('1', '._1', '.cache/2', '.3.jpg.new-x/3', '.masks.new-y/new/4')})
    assert list_images(images) == ['1.jpg']
    hidden, _ = made(tmp_path / '.hidden', {'1': ids(0)})
    assert list_images(hidden) == ['1.jpg']


def test_a_link_to_what_is_gone_is_named(init_dataset, tmp_path):  # noqa: F811
    images, masks = made(tmp_path, {'a': ids(0, 1), 'b': ids(0, 1), 'c': ids(0, 1)})
    (images / 'c.jpg').unlink()
    linked(images, 'c.jpg', tmp_path / 'gone.jpg')
    assert 'images/c.jpg: the image is missing' in init_dataset(images, masks, check=False)
    linked(images, 'train', tmp_path / 'unmounted')
    log = init_dataset(images, masks, check=False)
    assert log.startswith(f'init_dataset: {images}/train is a link to {tmp_path}/unmounted, which does not exist')
    if os.geteuid():  # the superuser reads everything
        (images / 'train').unlink()
        (images / 'closed').mkdir(mode=0)
        assert 'images/closed cannot be read (Permission denied)' in init_dataset(images, masks, check=False)


def test_a_run_trains_and_evaluates_on_the_files_of_linked_folders(init_dataset, tmp_path):  # noqa: F811
    made(tmp_path / 'disk', {f'{part}/{i}': ids(0, 1) for part in ('one', 'two') for i in range(3)})
    for kind in ('images', 'masks'):
        (tmp_path / kind).mkdir()
        for name, part in (('train', 'one'), ('val', 'two')):
            linked(tmp_path / kind, name, tmp_path / 'disk' / kind / part)
    small_recipe('eomt_lora_dinov2-b_cityscapes_640.py', 32).dump(tmp_path / 'base.py')
    log = init_dataset('images', 'masks', '--base', 'base.py', '--iters', 1)
    assert '6 images (….jpg) with masks (….png)' in log and '3 images to train on, 3 to evaluate on' in log

    config = Config.fromfile('configs/my_data.py')
    config.work_dir = 'run'
    runner = Runner.from_cfg(config)
    runner.train()
    seen = [
        [info['img_path'] for info in map(loop.dataloader.dataset.get_data_info, range(3))]
        for loop in (runner.train_loop, runner.val_loop)
    ]
    assert seen == [[f'images/{part}/{i}.jpg' for i in range(3)] for part in ('train', 'val')]
    assert Path('run/data_checked.txt').is_file()

    # where a config is written by hand, without lists, the toolbox scans the folder itself
    by_hand = BaseSegDataset(data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=[])
    assert sorted(sample['img_path'] for sample in by_hand) == sorted([*seen[0], *seen[1]])


def test_predict_reads_linked_folders(tmp_path):
    images, _ = made(tmp_path / 'here', {'1': ids(0)})
    elsewhere, _ = made(tmp_path / 'there', {'x/2': ids(0)})
    linked(images, 'more', elsewhere)
    linked(images, 'up', tmp_path / 'here')
    found = find_inputs([images], tmp_path / 'out')
    assert [name for _, name in found] == ['1', 'more/x/2']


SPLITS = {
    'train and test': (['train/1', 'train/2', 'test/3'], ['train/1', 'train/2'], ['test/3']),
    'train, val and test': (['train/1', 'val/2', 'test/3', 'x/4'], ['train/1'], ['val/2']),
    'other names': (['Training/1', 'testing/2', 'validation/3'], ['Training/1'], ['validation/3']),
    'of a year': (['train2017/1', 'val2017/2', 'other/3'], ['train2017/1'], ['val2017/2']),
    'below others': (['a/train/1', 'b/train/2', 'a/test/3', 'b/x/4'], ['a/train/1', 'b/train/2'], ['a/test/3']),
    'val and others': (['a/1', '2', 'valid/3'], ['2', 'a/1'], ['valid/3']),
    'test and others': (['a/1', '2', 'test/3'], ['2', 'a/1'], ['test/3']),
    'a file named train': (['train', 'test/3'], ['train'], ['test/3']),
}


@pytest.mark.parametrize(('names', 'train', 'evaluation'), SPLITS.values(), ids=SPLITS)
def test_images_of_other_folders_than_train_are_never_trained_on(init_dataset, tmp_path, names, train, evaluation):  # noqa: F811
    log = init_dataset(*made(tmp_path, {name: ids(0, 1) for name in names}))
    assert lists() == [train, evaluation]
    (said,) = (line for line in log.splitlines() if line.startswith('The split is that of the folders: '))
    assert Path('configs/my_data.py').read_text().splitlines()[1] == f'# {said}'
    assert ('chosen on test images' in said) == evaluation[0].split('/')[-2].startswith('test')
    left_out = len(names) - len(train) - len(evaluation)
    assert (f'{left_out} images elsewhere are ignored' in said) == bool(left_out)


def test_without_val_and_test_a_part_of_train_is_held_out(init_dataset, tmp_path):  # noqa: F811
    names = [*(f'train/{i}' for i in range(10)), 'extra/1', '2']
    log = init_dataset(*made(tmp_path, {name: ids(0, 1) for name in names}))
    train, evaluation = lists()
    assert len(train) == 8 and len(evaluation) == 2 and set(train) | set(evaluation) == set(names[:10])
    assert 'a part of train is held out for evaluation' in log
    assert '2 images elsewhere are ignored (., extra)' in log


def test_a_train_folder_without_masks_does_not_let_others_be_trained_on(init_dataset, tmp_path):  # noqa: F811
    images, masks = made(tmp_path, {'train/1': ids(0, 1), 'x/2': ids(0, 1), 'x/3': ids(0, 1)})
    (masks / 'train' / '1.png').unlink()
    log = init_dataset(images, masks, check=False)
    assert 'There is no image to train on: no image of the folder train can be used.' in log
    assert not Path('data').exists()


def test_images_of_val_and_test_alone_are_no_training_data(init_dataset, tmp_path):  # noqa: F811
    images, masks = made(tmp_path, {'val/1': ids(0, 1), 'test/2': ids(0, 1), 'test/3': ids(0, 1)})
    log = init_dataset(images, masks, check=False)
    assert 'There is no image to train on: all of them are in test, val.' in log
    init_dataset(images / 'test', masks / 'test')


def test_an_image_that_links_show_twice_is_in_one_part(init_dataset, tmp_path):  # noqa: F811
    images, masks = made(tmp_path, {f'pool/{i}': ids(0, 1) for i in range(4)})
    for name, number in (('train', 0), ('train', 1), ('val', 1)):
        for folder, suffix in ((images, '.jpg'), (masks, '.png')):
            (folder / name).mkdir(exist_ok=True)
            linked(folder, f'{name}/{number}{suffix}', folder / f'pool/{number}{suffix}')
    log = init_dataset(images, masks)
    assert '3 images are links to others of these, which are taken once' in log
    assert lists() == [['train/0'], ['val/1']]


def test_the_users_own_masks_are_never_written_over(init_dataset, tmp_path):  # noqa: F811
    images, masks = made(tmp_path / 'data' / 'my_data', {'a': ids(0, 255), 'b': ids(0, 255)})
    before = {path: path.read_bytes() for path in masks.iterdir()}
    log = init_dataset(images, masks, '--force', check=False)
    assert 'The class ids go to data/my_data/masks, and' in log and 'give another --name' in log
    assert before == {path: path.read_bytes() for path in masks.iterdir()}
    init_dataset(images, masks, '--name', 'other')


@pytest.mark.slow
def test_a_killed_run_leaves_no_mask_and_the_next_needs_no_force(init_dataset, tmp_path):  # noqa: F811
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (500, 500))
    masks = made(tmp_path, {str(i): Image.fromarray(noise) for i in range(40)}, '.bmp')
    command = [sys.executable, ROOT / 'tools' / 'init_dataset.py', *masks]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(tmp_path.glob('data/my_data/.masks.new-*/new/*.png'))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = Path('data/my_data').iterdir()
    assert left.name.startswith('.masks.new-') and not Path('configs').exists()
    init_dataset(*masks)
    written = files_in(Path('data/my_data/masks'))
    assert len(written) == 40
    assert all((np.array(Image.open(path)) == noise // 255).all() for path in written)


def test_an_error_half_way_leaves_the_earlier_masks_with_their_config(init_dataset, tmp_path, monkeypatch):  # noqa: F811
    images, masks = made(tmp_path, {'a': ids(0, 7), 'b': ids(0, 7)})
    init_dataset(images, masks)
    (tmp_path / 'classes.txt').write_text('other 7\nfirst 0\n')
    before = {path: path.read_bytes() for path in files_in(tmp_path)}
    save = Image.Image.save

    def fails_at_the_second_mask(image: Image.Image, path: Path) -> None:
        if path.name == 'b.png':
            raise OSError(f'{path}: no space left')
        save(image, path)

    monkeypatch.setattr(Image.Image, 'save', fails_at_the_second_mask)
    assert 'no space left' in init_dataset(images, masks, '--classes', 'classes.txt', '--force', check=False)
    assert before == {path: path.read_bytes() for path in files_in(tmp_path)}


def test_an_error_is_not_blamed_on_a_folder_whose_images_are_linked(tmp_path):
    images, masks = made(tmp_path / 'disk', {'1': ids(0)})
    for name, target in (('images', images), ('masks', masks)):
        (tmp_path / name).mkdir()
        linked(tmp_path / name, 'train', target)
    prefix = dict(img_path='images', seg_map_path='masks')
    dataset = dict(type='BaseSegDataset', data_root=str(tmp_path), data_prefix=prefix, pipeline=[], _scope_='mmseg')
    with pytest.raises(ValueError, match='batch_size should be a positive integer'):
        Runner.build_dataloader(dict(dataset=dataset, sampler=dict(type='DefaultSampler', _scope_='mmengine'), batch_size=0))
