"""tools/init_dataset.py finds what a folder holds, and its config trains."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_line, small_recipe
from mmengine.config import Config
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_eomt.commands import init_dataset as command
from mmseg_eomt.commands.own_data.class_list import read_classes
from mmseg_eomt.commands.own_data.class_mapping import IGNORED, make_palette
from mmseg_eomt.commands.own_data.pairing import find_pairs

CAMVID = ROOT.parent / 'shared' / 'camvid'
CAMVID_CLASSES = 'sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist'
COLOURS = {'void': (0, 0, 0), 'road': (128, 64, 128), 'car': (64, 0, 128)}


def made(folder: Path, masks: dict[str, Image.Image], image_suffix: str = '.jpg', mask_suffix: str = '.png') -> tuple:
    """Images of noise with masks, in ``folder/images`` and ``folder/masks``."""
    rng = np.random.default_rng(0)
    for name, mask in masks.items():
        for kind, suffix in (('images', image_suffix), ('masks', mask_suffix)):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(rng.integers(0, 256, (*mask.size[::-1], 3), np.uint8)) if kind == 'images' else mask
            picture.save(folder / kind / f'{name}{suffix}')
    return folder / 'images', folder / 'masks'


def ids(*values: int, size: tuple[int, int] = (64, 96), dtype: type = np.uint8) -> Image.Image:
    """A mask with stripes of ids."""
    return Image.fromarray(np.resize(np.repeat(np.array(values, dtype), 8), size))


def colours(*names: str) -> Image.Image:
    stripes = np.resize(np.repeat(np.arange(len(names)), 8), (64, 96))
    return Image.fromarray(np.array([COLOURS[name] for name in names], np.uint8)[stripes])


@pytest.fixture
def init_dataset(tmp_path, monkeypatch, in_process):
    """Run the command in ``tmp_path``, within this process; its output and its last words."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(in_process, command.main)


def test_ids_are_taken_as_they_are_and_the_split_from_the_folders(init_dataset, tmp_path):
    masks = {'train/a': ids(0, 1, 2), 'train/b': ids(1, 2), 'train/sub/c': ids(0, 255), 'val/d': ids(2, 0)}
    images, folder = made(tmp_path, masks)
    log = init_dataset(images, folder, '--classes', 'road,car,sky')

    assert '4 images (….jpg) with masks (….png)' in log
    assert 'sizes: 96×64 (4)' in log
    assert re.search(r'1 +1 +car +\d+\.\d+% +2', log)
    assert '3 images to train on, 1 to evaluate on' in log
    assert 'not in the images for evaluation: car' in log
    config = Config.fromfile(tmp_path / 'configs' / 'my_data.py')
    assert config.classes == ['road', 'car', 'sky']
    assert config.train_dataloader.dataset.data_prefix.seg_map_path == str(folder)
    assert (tmp_path / 'data/my_data/train.txt').read_text().split() == ['train/a', 'train/b', 'train/sub/c']
    assert (tmp_path / 'data/my_data/val.txt').read_text().split() == ['val/d']
    assert Image.open(tmp_path / 'data/my_data/contact_sheet.png').width > 500
    assert not (tmp_path / 'data/my_data/masks').exists()
    assert 'mmseg-eomt train configs/my_data.py' in log  # python tools/train.py where there is one


KINDS = {
    'colours': ([colours('void', 'road'), colours('car', 'road')], ['--ignore', '0,0,0'], [[255, 1], [0, 1]]),
    'grey colours': ([ids(0, 1).convert('RGB'), ids(2, 1).convert('RGB')], [], [[0, 1], [2, 1]]),
    'ids and shades of grey': ([ids(0, 1), ids(2, 1).convert('RGB')], [], [[0, 1], [2, 1]]),
    'binary': ([ids(0, 255), ids(255, 0)], [], [[0, 1], [1, 0]]),
    'gaps': ([ids(0, 7, 255), ids(33, 7)], [], [[0, 1, 255], [2, 1]]),
    'two bytes': ([ids(0, 300, dtype=np.uint16), ids(1000, 300, dtype=np.uint16)], [], [[0, 1], [2, 1]]),
    'an ignored id': ([ids(0, 1, 11), ids(2, 11)], ['--ignore', '11'], [[0, 1, 255], [2, 255]]),
}


@pytest.mark.parametrize(('masks', 'options', 'expected'), KINDS.values(), ids=KINDS)
def test_other_masks_become_ids_and_the_given_ones_stay(init_dataset, tmp_path, masks, options, expected):
    images, folder = made(tmp_path, dict(zip('ab', masks)))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    init_dataset(images, folder, *options)
    for name, values in zip('ab', expected):
        written = np.array(Image.open(tmp_path / 'data/my_data/masks' / f'{name}.png'))
        assert written.dtype == np.uint8
        assert (written == np.array(ids(*values))).all()
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    config = Config.fromfile(tmp_path / 'configs' / 'my_data.py')
    assert config.model.decode_head.num_classes == len({v for values in expected for v in values} - {255})
    if 'car' in (tmp_path / 'configs' / 'my_data.py').read_text() or (masks[0].mode == 'RGB' and options):
        assert config.palette == [(64, 0, 128), (128, 64, 128)]


def test_masks_of_one_bit_are_taken_as_they_are(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 255).convert('1'), 'b': ids(255, 0).convert('1')})
    init_dataset(images, folder)
    dataset = DATASETS.build(
        dict(Config.fromfile('configs/my_data.py').val_dataloader.dataset, pipeline=[dict(type='mmseg.LoadAnnotations')])
    )
    assert set(np.unique(dataset[0]['gt_seg_map'])) == {0, 1}


def test_a_palette_gives_ids_and_the_colours(init_dataset, tmp_path):
    mask = ids(0, 1).convert('P')
    mask.putpalette([10, 20, 30, 200, 100, 50])
    images, folder = made(tmp_path, {'a': mask, 'b': mask})
    assert 'ids with a palette' in init_dataset(images, folder)
    config = Config.fromfile(tmp_path / 'configs' / 'my_data.py')
    assert config.palette == [(10, 20, 30), (200, 100, 50)]
    assert config.train_dataloader.dataset.data_prefix.seg_map_path == str(folder)


def test_palettes_that_differ_from_file_to_file_are_read_as_colours(init_dataset, tmp_path):
    """As programs save colours that use as few indices as possible: index 0 is the road here and the car there."""
    masks = {'a': colours('road', 'car'), 'b': colours('car', 'void')}
    images, folder = made(tmp_path, {name: mask.quantize(len(COLOURS)) for name, mask in masks.items()})
    stored = [np.array(Image.open(folder / f'{name}.png')) for name in 'ab']
    assert all(mask.ndim == 2 for mask in stored)
    log = init_dataset(images, folder)
    assert 'a colour for each class' in log
    config = Config.fromfile('configs/my_data.py')
    for name, mask in masks.items():
        ids = np.array(Image.open(tmp_path / 'data/my_data/masks' / f'{name}.png'))
        assert (np.array(config.palette)[ids] == np.array(mask)).all()


def test_images_of_several_types_are_all_taken(init_dataset, tmp_path):
    images, folder = made(tmp_path, {name: ids(0, 1) for name in ('a', 'b', 's/c', 'd')})
    for name, suffix in (('b', '.JPG'), ('s/c', '.jpeg')):
        (images / f'{name}.jpg').rename(images / f'{name}{suffix}')
    assert '4 images (of several types) with masks (….png)' in init_dataset(images, folder)
    config = Config.fromfile('configs/my_data.py')
    for loader, count in ((config.train_dataloader, 3), (config.val_dataloader, 1)):
        dataset = DATASETS.build(dict(loader.dataset, pipeline=[]))
        files = [(Path(sample['img_path']), Path(sample['seg_map_path'])) for sample in dataset]
        assert len(files) == count
        assert all(image.is_file() and mask.is_file() and mask.name == f'{image.name}.png' for image, mask in files)


def test_a_stray_colour_is_pointed_at(init_dataset, tmp_path):
    masks = {name: np.array(colours('car', 'road')) for name in 'abcd'}
    masks['a'][0, 0] = 1, 2, 3
    log = init_dataset(*made(tmp_path, {name: Image.fromarray(mask) for name, mask in masks.items()}))
    assert 'rare: class_1_2_3. If these are stray values' in log


def test_255_is_not_trained_on_where_something_else_is_ignored_too(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 1, 2, 255), 'b': ids(0, 1, 2)})
    init_dataset(images, folder, '--ignore', 0)
    assert Config.fromfile('configs/my_data.py').classes == ['class_1', 'class_2']
    assert 'no mask holds 7, which --ignore names' in init_dataset(images, folder, '--ignore', 7, '--force')
    assert Config.fromfile('configs/my_data.py').classes == ['class_0', 'class_1', 'class_2']


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 2])
def test_of_two_images_of_one_name_the_png_is_the_mask_in_every_process(tmp_path, seed):
    for name in '12':
        ids(0, 1).convert('RGB').save(tmp_path / f'{name}.bmp')
        ids(0, 1).save(tmp_path / f'{name}.png')
    code = 'import sys; from pathlib import Path; from mmseg_eomt.commands.own_data.pairing import find_pairs; '
    code += 'found = find_pairs(Path(sys.argv[1]), Path(sys.argv[1])); '
    code += 'print(list(found.masks), found.image_suffix, found.mask_suffix)'
    env = {**os.environ, 'PYTHONHASHSEED': str(seed), 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code, tmp_path], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split('\n')[0] == "['1', '2'] .bmp .png"


@pytest.mark.parametrize(
    ('base', 'message'),
    [
        ('eomt_lora_ade20k_512.py', 'with reduce_zero_label=True'),
        ('datasets/eomt_lora_pascal_voc12.py', 'from several datasets'),
    ],
)
def test_a_base_whose_way_of_reading_would_change_the_labels_is_refused(init_dataset, tmp_path, base, message):
    images, folder = made(tmp_path, {'a': ids(0, 1), 'b': ids(0, 1)})
    assert message in init_dataset(images, folder, '--base', base, check=False)
    base = Config.fromfile(ROOT / 'configs' / 'eomt_lora_cityscapes.py')
    for loader in ('train_dataloader', 'val_dataloader'):
        base[loader].dataset.update(reduce_zero_label=True, indices=1)
    base.dump(tmp_path / 'base.py')
    init_dataset(images, folder, '--base', tmp_path / 'base.py')
    config = Config.fromfile('configs/my_data.py')
    assert not {'reduce_zero_label', 'indices', 'data_root'} & set(config.train_dataloader.dataset)
    assert config.train_dataloader.dataset.pipeline == base.train_dataloader.dataset.pipeline


def test_bad_files_are_named_together_and_can_be_left_out(init_dataset, tmp_path):
    masks = {name: ids(0, 1) for name in 'abcdef'}
    images, folder = made(tmp_path, masks)
    (images / 'a.jpg').write_bytes((images / 'a.jpg').read_bytes()[:500])
    (folder / 'b.png').write_bytes(b'')
    ids(0, 1, size=(10, 20)).save(folder / 'c.png')
    ids(0, 9).save(folder / 'd.png')
    (images / 'lone.jpg').write_bytes((images / 'b.jpg').read_bytes())
    log = init_dataset(images, folder, '--classes', 'road,car', check=False)
    assert '1 images without a mask, skipped: lone.jpg' in log
    assert '4 of 6 images cannot be used' in log
    for line in ('a.jpg: the image cannot be read', 'b.png: the mask is an empty file', 'c.png: the mask is 20×10 pixels'):
        assert line in log
    assert 'd.png: 9 is in neither --classes nor --ignore' in log
    assert not (tmp_path / 'configs').exists()

    log = init_dataset(images, folder, '--classes', 'road,car', '--skip-bad')
    assert '1 images to train on, 1 to evaluate on' in log
    kept = [(tmp_path / f'data/my_data/{split}.txt').read_text().strip() for split in ('train', 'val')]
    assert sorted(kept) == ['e', 'f']


def test_values_that_most_masks_hold_and_no_class_names_are_said_once(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 1, 2), 'b': ids(0, 1, 2), 'c': ids(0, 1, 7), 'd': ids(0, 1)})
    log = init_dataset(images, folder, '--classes', 'road,car', check=False)
    assert '3 of 4 masks hold values that are in neither --classes nor --ignore: 2 (in 2), 7 (in 1).' in log
    assert 'a.png' not in log
    init_dataset(images, folder, '--classes', 'road,car', '--ignore', '2', '7')


WHITE = {
    'ids of 0 and 255': ([ids(0, 255), ids(255, 0)], [[0, 1], [1, 0]]),
    'three channels': ([ids(0, 255).convert('RGB'), ids(255, 0).convert('RGB')], [[0, 1], [1, 0]]),
    'two bytes': ([ids(0, 65535, dtype=np.uint16), ids(65535, 0, dtype=np.uint16)], [[0, 1], [1, 0]]),
    'some of 0 and 1': ([ids(0, 255), ids(0, 1), ids(0, 0)], [[0, 1], [0, 1], [0, 0]]),
    'some of one bit': ([ids(0, 255), ids(0, 255).convert('1')], [[0, 1], [0, 1]]),
    'one of 255 alone': ([ids(255, 255), ids(0, 255)], [[1, 1], [0, 1]]),
    '255 beside 1': ([ids(0, 1, 255), ids(0, 255)], [[0, 1, 255], [0, 255]]),
    'one bit alone': ([ids(0, 255).convert('1'), ids(255, 0).convert('1')], [[0, 1], [1, 0]]),
}


@pytest.mark.parametrize(('masks', 'expected'), WHITE.values(), ids=WHITE)
def test_of_two_named_classes_the_second_is_white(init_dataset, tmp_path, masks, expected):
    """255 beside 1 is what it usually is: not trained on."""
    init_dataset(*made(tmp_path, dict(zip('abc', masks))), '--classes', 'background,crack')
    config = Config.fromfile('configs/my_data.py')
    assert config.classes == ['background', 'crack']
    for loader in (config.train_dataloader, config.val_dataloader):
        dataset = DATASETS.build(
            dict(loader.dataset, pipeline=[dict(type='mmseg.LoadAnnotations', imdecode_backend='pillow')])
        )
        for sample in dataset:
            read = np.asarray(sample['gt_seg_map'], np.uint8)
            assert (read == np.array(ids(*expected['abc'.index(Path(sample['img_path']).stem)]))).all()


def test_white_among_ones_is_said_and_left_out_where_the_user_says_so(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 255), 'b': ids(0, 1), 'c': ids(0, 1)})
    log = init_dataset(images, folder, '--classes', 'background,crack')
    assert '255 is crack, as 1 is. If it is not to be trained on, add --ignore 255.' in log
    init_dataset(images, folder, '--classes', 'background,crack', '--ignore', 255, '--force')
    assert Config.fromfile('configs/my_data.py').train_dataloader.dataset.data_prefix.seg_map_path == str(folder)
    assert '255 is not trained on, as usual. If it is a class' in init_dataset(images, folder, '--force')


UNSEEN = {
    'three names': (
        [0, 255],
        'a,b,c',
        'No mask has a pixel of b (1) and 1 other classes of --classes, while 255,',
        '50.00%',
    ),
    'trimap': ([0, 128, 255], 'background,crack', 'No mask has a pixel of crack (1) of --classes, while 128,', '33.33%'),
    'ids from 1': ([1, 2], 'background,crack', 'No mask has a pixel of background (0) of --classes, while 2,', '50.00%'),
    'no background': (
        [1, 255],
        'background,crack',
        'No mask has a pixel of background (0) of --classes, while 255,',
        '50.00%',
    ),
}


@pytest.mark.parametrize(('values', 'classes', 'message', 'fraction'), UNSEEN.values(), ids=UNSEEN)
@pytest.mark.parametrize('option', [[], ['--skip-bad']])
def test_a_class_without_a_pixel_beside_a_value_without_a_name_is_refused(
    init_dataset, tmp_path, values, classes, message, fraction, option
):
    stripes = np.resize(np.repeat(np.array(values, np.uint8), 8), (48, 8 * len(values)))
    masks = {name: Image.fromarray(stripes) for name in 'ab'} | {
        'c': ids(values[0], size=(8, 8)),
        'd': ids(values[0], size=(8, 8)),
    }
    log = init_dataset(*made(tmp_path, masks), '--classes', classes, *option, check=False)
    assert message in log and 'give a file of classes with the line "' in log
    assert not list(tmp_path.glob('configs')) and not list(tmp_path.glob('data'))


def test_a_class_without_a_pixel_is_fine_where_every_value_is_named_or_ignored(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 2, 255), 'b': ids(0, 2)})
    assert 'No mask has a pixel of car (1)' in init_dataset(images, folder, '--classes', 'road,car,sky', check=False)
    log = init_dataset(images, folder, '--classes', 'road,car,sky', '--ignore', 255)
    assert 'not in the images for training: car' in log
    (tmp_path / 'classes.txt').write_text('road 0\ncar 255\nsky 2\n')
    init_dataset(images, folder, '--classes', 'classes.txt', '--force')
    assert set(np.unique(Image.open('data/my_data/masks/a.png'))) == {0, 1, 2}


def test_a_negative_id_is_refused_until_it_is_ignored(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 1, -1, dtype=np.int32), 'b': ids(0, 1, dtype=np.int32)}, mask_suffix='.tif')
    said = init_dataset(images, folder, check=False)
    assert '1 masks, such as ' in said
    assert 'hold -1, and ids are 0 or more: add --ignore -1' in said
    init_dataset(images, folder, '--ignore', -1)
    assert set(np.unique(Image.open('data/my_data/masks/a.png'))) == {0, 1, 255}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--iters', 0], '--iters is the number of iterations to train, 1 or more, got 0.'),
        (['--iters', -10], '--iters is the number of iterations to train, 1 or more, got -10.'),
        (['--classes', 'onlyone'], "--classes 'onlyone' is neither a file nor two or more names"),
        (['--classes', ''], "--classes '' is neither a file nor two or more names"),
        (['--classes', 'one.txt'], '--classes one.txt gives 1 of the 2 or more classes of a dataset'),
        (['--classes', 'none.txt'], '--classes none.txt gives 0 of the 2 or more classes of a dataset'),
        (['--classes', 'road,car', '--ignore', 'car'], '--classes road,car without what --ignore names gives 1 of the 2'),
        (['--classes', 'road,car,road'], '--classes road,car,road has the name road twice'),
        (['--classes', 'road,,car'], '--classes road,,car has an empty name'),
        (['--classes', 'empty.txt'], "empty.txt, line 2: ', 3' has no name"),
        (['--out', 'my.txt'], '--out is the path of a config to write, which ends in .py, got my.txt.'),
        (['--base', 'base.py', '--out', 'base.py', '--force'], '--base base.py is the file to be written'),
    ],
)
def test_wrong_options_are_refused_in_a_sentence_before_anything_is_read(init_dataset, tmp_path, options, message):
    (tmp_path / 'one.txt').write_text('road\n')
    (tmp_path / 'none.txt').write_text('# road\n')
    (tmp_path / 'empty.txt').write_text('road 0\n, 3\n')
    Config.fromfile(ROOT / 'configs' / 'eomt_lora_cityscapes.py').dump(tmp_path / 'base.py')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    log = init_dataset('no_images', 'no_masks', *options, check=False)
    assert re.fullmatch(rf'init_dataset: .*{re.escape(message)}.*', log)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_long_list_of_classes_is_no_file(init_dataset, tmp_path):
    names = [f'a_class_of_many_{i}' for i in range(150)]
    init_dataset(*made(tmp_path, {'a': ids(0, 1), 'b': ids(*range(150))}), '--classes', ','.join(names))
    assert Config.fromfile('configs/my_data.py').classes == names


def test_what_cannot_be_a_dataset_is_refused_in_a_sentence(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 1), 'b': ids(0, 1)})
    (tmp_path / 'empty').mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    made(tmp_path / 'noise', {'a': noise, 'b': noise})
    made(tmp_path / 'jpeg', {'a': ids(0, 1), 'b': ids(0, 1)}, mask_suffix='.jpg')
    made(tmp_path / 'one', {'a': ids(0, 0), 'b': ids(0, 0)})
    made(tmp_path / 'float', {'a': Image.fromarray(np.ones((64, 96), np.float32))}, mask_suffix='.tif')
    (tmp_path / 'latin.txt').write_bytes('straße'.encode('latin-1'))
    for arguments, message in (
        ((images, tmp_path / 'none'), 'none is no folder'),
        ((images, tmp_path / 'empty'), 'empty holds no image'),
        ((images, tmp_path / 'one/masks', '--mask-suffix', '_x.png'), 'No mask has the name of an image. Images: a.jpg'),
        ((tmp_path / 'noise/images', tmp_path / 'noise/masks'), 'colours. Are they photographs'),
        ((tmp_path / 'jpeg/images', tmp_path / 'jpeg/masks'), 'JPEG changes values'),
        ((tmp_path / 'one/images', tmp_path / 'one/masks'), 'needs 2 to 255 classes'),
        ((images, folder, '--base', 'eomt_none.py'), '--base eomt_none.py is neither a file nor a config'),
        ((images, folder, '--ignore', 'car'), "got 'car'"),
        ((images, folder, '--classes', tmp_path / 'latin.txt'), 'latin.txt is no text in UTF-8'),
        ((tmp_path / 'float/images', tmp_path / 'float/masks'), 'holds numbers with fractions (float32)'),
    ):
        log = init_dataset(*arguments, check=False)
        assert message in log, log
    init_dataset(images, folder)
    assert 'exists: give another --name' in init_dataset(images, folder, check=False)
    assert 'data/my_data exists' in init_dataset(images, folder, '--out', 'configs/other.py', check=False)
    init_dataset(images, folder, '--force')


def test_names_are_paired_by_what_they_share(tmp_path):
    images, folder = made(tmp_path, {'s/1': ids(0, 1), 's/2': ids(0, 1)}, '_leftImg8bit.png', '_gtFine_labelTrainIds.png')
    for name in '12':
        for other in ('_gtFine_color.png', '_gtFine_labelIds.png'):
            ids(0, 1).save(folder / 's' / f'{name}{other}')
    pairs = find_pairs(images, folder)
    assert (list(pairs.masks), pairs.image_suffix, pairs.mask_suffix) == (
        ['s/1', 's/2'],
        '_leftImg8bit.png',
        '_gtFine_labelTrainIds.png',
    )
    assert pairs.other_masks == {'_gtFine_color.png': 2, '_gtFine_labelIds.png': 2}
    assert find_pairs(images, folder, '_gtFine_color.png').mask_suffix == '_gtFine_color.png'


def test_images_and_masks_may_lie_in_one_folder(tmp_path):
    for name in ('a', 'b_c'):
        ids(0, 1).convert('RGB').save(tmp_path / f'{name}.png')
        ids(0, 1).save(tmp_path / f'{name}_mask.png')
    pairs = find_pairs(tmp_path, tmp_path)
    assert (list(pairs.masks), pairs.image_suffix, pairs.mask_suffix) == (['a', 'b_c'], '.png', '_mask.png')
    assert not pairs.lone_images and not pairs.lone_masks


def test_of_two_types_in_one_folder_each_may_have_its_end(tmp_path):
    for name in ('1', '2', 'a_3'):
        ids(0, 1).convert('RGB').save(tmp_path / f'{name}_image.jpg')
        ids(0, 1).save(tmp_path / f'{name}_mask.png')
    (tmp_path / '2_mask.png').unlink()
    pairs = find_pairs(tmp_path, tmp_path)
    assert pairs.masks == {'1': '1_mask.png', 'a_3': 'a_3_mask.png'}
    assert (pairs.image_suffix, pairs.mask_suffix, pairs.lone_images) == ('_image.jpg', '_mask.png', ['2_image.jpg'])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('road\ntraffic sign\n', {'road': 0, 'traffic sign': 1}),
        ('road 7\ncar, 26', {'road': 7, 'car': 26}),
        ('# of mine\nroad: 0\n1: traffic sign', {'road': 0, 'traffic sign': 1}),
        ('id,name\n0,background\n1,traffic sign', {'background': 0, 'traffic sign': 1}),
        ('name,r,g,b\nroad,128,64,128\ncar,0,0,142', {'road': (128, 64, 128), 'car': (0, 0, 142)}),
        ('64 128 64\t\tAnimal\n192 0 128 Traffic cone', {'Animal': (64, 128, 64), 'Traffic cone': (192, 0, 128)}),
    ],
)
def test_a_list_of_classes_is_read_in_the_usual_forms(tmp_path, text, expected):
    (tmp_path / 'classes.txt').write_text(text)
    assert read_classes(tmp_path / 'classes.txt') == expected


@pytest.mark.parametrize(
    'text', ['road\nroad', 'road 1\ncar 1', 'road 300 0 0\ncar 1 1 1', 'road 1 2 3\ncar 4', 'road\ncar 5']
)
def test_a_list_that_contradicts_itself_is_refused(tmp_path, text):
    (tmp_path / 'classes.txt').write_text(text)
    with pytest.raises(ValueError, match=r'classes\.txt'):
        read_classes(tmp_path / 'classes.txt')


def test_colours_are_told_apart():
    palette = np.array(make_palette(40), float)
    distance = np.abs(palette[:, None] - palette[None]).sum(-1) + 1000 * np.eye(40)
    assert distance.min() > 10
    assert palette.min() >= 0 and palette.max() <= 255 and IGNORED == 255


@pytest.fixture
def camvid(tmp_path) -> tuple[Path, Path, list[str]]:
    """Some frames and their masks, with what the tool has to be told of them: CamVid's, or made ones in its form."""
    if not CAMVID.is_dir():
        masks = {f'{split}/{i}': ids(*range(12)) for split in ('train', 'val') for i in range(4)}
        return *made(tmp_path / 'made', masks), ['--classes', CAMVID_CLASSES, '--ignore', '11']
    for kind, suffix in (('images', '.jpg'), ('labels', '.png')):
        for split in ('train', 'val'):
            (tmp_path / kind / split).mkdir(parents=True)
            for path in sorted((CAMVID / kind / split).glob(f'*{suffix}'))[:4]:
                shutil.copy(path, tmp_path / kind / split)
    return tmp_path / 'images', tmp_path / 'labels', ['--classes', CAMVID_CLASSES, '--ignore', '11']


@pytest.mark.slow
def test_three_commands_lead_from_images_and_masks_to_an_adapted_model_and_pictures(camvid, tmp_path):
    """The commands that the tool prints, on the default base with a small model of random weights."""
    images, masks, options = camvid
    base = small_recipe('eomt_lora_dinov2-b_cityscapes_640.py', 160)
    base.default_hooks.logger.interval = 1
    base.dump(tmp_path / 'base.py')

    tools = f'python {ROOT}/tools'
    first = f'{tools}/init_dataset.py {images} {masks} {" ".join(options)} --base base.py --iters 4'
    log = run_line(first, tmp_path)
    commands = re.findall(r'^  (mmseg-eomt .*)$', log, re.M)
    assert len(commands) == 2
    for line in commands:
        run_line(re.sub(r'^mmseg-eomt (\w+)', rf'{tools}/\1.py', line), tmp_path)

    table = (tmp_path / 'work_dirs/my_data/adapters.txt').read_text()
    assert 'backbone adapters' in table
    frames = sorted(path.relative_to(images).with_suffix('') for path in images.rglob('*.jpg'))
    for frame in frames:
        labels = np.array(Image.open(tmp_path / f'predictions/labels/{frame}.png'))
        width, height = Image.open(images / f'{frame}.jpg').size
        assert labels.shape == (height, width) and labels.max() < 11
        overlay = Image.open(tmp_path / f'predictions/overlays/{frame}.png')
        assert overlay.height == height and overlay.width > width  # with its legend


def test_outside_the_repository_the_config_names_the_plugins_own(init_dataset, tmp_path):
    images, folder = made(tmp_path, {'a': ids(0, 1), 'b': ids(0, 1)})
    init_dataset(images, folder)
    text = (tmp_path / 'configs' / 'my_data.py').read_text()
    assert "_base_ = 'mmseg_eomt::eomt_lora_dinov2-b_cityscapes_640.py'" in text
    config = Config.fromfile(tmp_path / 'configs' / 'my_data.py')
    assert config.model.backbone.type == 'EoMTViT'
    assert config.param_scheduler[0].warmup_steps == (100, 200)
