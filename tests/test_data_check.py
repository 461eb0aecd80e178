"""Bad data stops a run before its first iteration, with the file's name."""

import re
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from conftest import run_tool
from mmengine.runner import Runner
from PIL import Image

from mmseg_eomt.data.check import File, Found, LabelRule, files_of, look_at
from mmseg_eomt.data.files import read_mask
from mmseg_eomt.data.images import Reader, inspect_image


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
    monkeypatch.setattr('mmseg_eomt.data.check.look_at', lambda file: read.append(file) or Found())
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


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp'])
def test_a_phone_picture_lying_on_its_side_has_the_size_that_is_trained_on(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f'a{suffix}'
    Image.new('RGB', (40, 20)).save(path, exif=exif)
    assert inspect_image(path).size == cv2.imread(str(path)).shape[:2] == (40, 20)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.bmp', '.webp'])
def test_whole_images_of_all_kinds_pass_and_cut_ones_do_not(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    assert look_at(File(str(path))) == Found()
    cut_short(path)
    assert 'cannot be read' in look_at(File(str(path))).problem


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
    monkeypatch.setattr('mmseg_eomt.data.check.look_at', lambda file: read.append(file) or Found())
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
    files = list(files_of(Runner.build_dataloader(loader).dataset, 19, 255))
    assert len(files) == 4 and all(file.mask and file.rule for file in files)


def turn(path: Path, orientation: int, **options) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif, **options)


def test_images_that_the_reader_turns_are_counted_in_each_run(small_config, data, capfd):
    image = min(data.glob('leftImg8bit/val/*/*.png'))
    turn(image, 3)
    for _ in range(2):  # the second reads no file again
        evaluate(small_config, data)
        said = capfd.readouterr()
        assert '1 images carry an Exif orientation, which the reader applies' in said.out + said.err
        assert f'For 1 of them no size shows whether the mask fits (the first: {image})' in said.out + said.err


@pytest.mark.parametrize(('suffix', 'orientation'), [('.jpg', 2), ('.png', 3), ('.webp', 4), ('.tif', 6), ('.jpg', 8)])
def test_the_orientation_is_the_one_that_the_reader_applies(tmp_path, suffix, orientation):
    path, mask = tmp_path / f'a{suffix}', tmp_path / 'mask.png'
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:4, :4] = 255  # a corner that shows how it is turned
    Image.fromarray(picture).save(path)
    turn(path, orientation)
    read = mmcv.imfrombytes(path.read_bytes(), flag='color', backend='cv2')
    assert read[:4, :4].mean() < 100  # turned
    assert inspect_image(path) == (read.shape[:2], orientation)
    write_ids(mask, np.zeros(read.shape[:2], np.uint8))
    assert look_at(File(str(path), str(mask))) == Found(None, (read.shape[:2], orientation))
    if suffix != '.tif':  # its readers turn it in any case
        assert inspect_image(path, Reader('unchanged')) == ((16, 32), 1)


def test_a_mask_of_the_size_before_turning_is_explained(tmp_path):
    path, mask = tmp_path / 'a.jpg', tmp_path / 'a.png'
    Image.new('RGB', (40, 20)).save(path)
    turn(path, 6)
    write_ids(mask, np.zeros((20, 40), np.uint8))
    problem = look_at(File(str(path), str(mask))).problem
    assert 'is 40×20 pixels' in problem and '20×40 once its Exif orientation (6) is applied' in problem
    assert 'exiftool' in problem


def test_a_mask_with_an_orientation_of_its_own_is_refused(tmp_path):
    path = tmp_path / 'a.png'
    write_ids(path, np.zeros((20, 40), np.uint8))
    turn(path, 3)
    with pytest.raises(ValueError, match=r'a.png: the mask carries an Exif orientation \(3\)'):
        read_mask(path)


@pytest.mark.parametrize(
    ('mode', 'compression', 'shown'),
    [
        ('F', 'raw', 'TIFF of mode F, raw'),
        ('RGB', 'zstd', 'TIFF of mode RGB, zstd'),
        ('RGB', 'lzma', 'TIFF of mode RGB, lzma'),
    ],
)
def test_what_pillow_opens_and_the_reader_of_the_run_does_not_is_named(tmp_path, mode, compression, shown):
    path = tmp_path / 'a.tif'
    Image.new('L', (40, 20)).convert(mode).save(path, compression=compression)
    assert cv2.imread(str(path)) is None
    assert look_at(File(str(path))).problem == (
        f'{path}: the image cannot be read (cv2, the reader of the run, does not take {shown})'
    )
    assert look_at(File(str(path), reader=Reader(backend='pillow'))) == Found()


def test_what_the_reader_takes_and_pillow_does_not_passes(tmp_path):
    path = tmp_path / 'a.tif'
    cv2.imwrite(str(path), np.zeros((20, 40, 3), np.int16))
    with pytest.raises(OSError):
        Image.open(path)
    assert inspect_image(path).size == (20, 40)


def one_bit_png(path: Path, side: int) -> None:
    """A black square, written without holding it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    rows = bytes((1 + (side + 7) // 8) * 100)
    content = b''.join(packer.compress(rows) for _ in range(side // 100)) + packer.flush()
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', content) + chunk(b'IEND', b''))


def test_images_of_more_than_179_megapixels_pass_up_to_what_the_reader_takes(tmp_path):
    path = tmp_path / 'a.png'
    one_bit_png(path, 13500)
    assert inspect_image(path).size == (13500, 13500)
    assert read_mask(path)[0].shape == (13500, 13500)  # LoadAnnotations opens it with Pillow, too
    one_bit_png(path, 33000)  # above 2^30
    assert 'the image cannot be read (OpenCV' in look_at(File(str(path))).problem


def test_an_ordinary_image_is_not_decoded_and_a_jpeg_with_a_damaged_table_is_found(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    jpeg, png = tmp_path / 'a.jpg', tmp_path / 'a.png'
    picture.save(jpeg)
    picture.save(png)
    content = bytearray(jpeg.read_bytes())
    content[content.index(b'\xff\xc4') + 8] ^= 0xFF  # in a Huffman table
    (tmp_path / 'bad.jpg').write_bytes(content)
    assert cv2.imread(str(tmp_path / 'bad.jpg')) is None
    assert 'bad.jpg: the image cannot be read' in look_at(File(str(tmp_path / 'bad.jpg'))).problem
    monkeypatch.setattr(Reader, 'decode', lambda *_: pytest.fail('decoded'))
    assert inspect_image(jpeg).size == inspect_image(png).size == (50, 60)


LOSSY = {
    'WebP': ('.webp', dict(quality=95)),
    'animated WebP': ('.webp', dict(save_all=True, append_images=[Image.new('L', (40, 20))])),
    'JPEG': ('.jpg', dict(quality=100)),
    'JPEG in TIFF': ('.tif', dict(compression='jpeg')),
}


@pytest.mark.parametrize(('suffix', 'options'), LOSSY.values(), ids=LOSSY)
def test_masks_saved_with_loss_are_refused_by_their_content(tmp_path, suffix, options):
    path = tmp_path / f'a{suffix}'
    write_ids(tmp_path / 'a.png', np.eye(20, 40, dtype=np.uint8))
    Image.open(tmp_path / 'a.png').save(path, **options)
    path.rename(tmp_path / 'b.png')
    with pytest.raises(ValueError, match=r'b\.png: the mask is saved with loss'):
        read_mask(tmp_path / 'b.png')


@pytest.mark.parametrize(('suffix', 'options'), [('.webp', dict(lossless=True)), ('.tif', dict(compression='tiff_lzw'))])
def test_masks_saved_without_loss_are_read(tmp_path, suffix, options):
    ids = np.eye(20, 40, dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / f'a{suffix}', **options)
    values, _ = read_mask(tmp_path / f'a{suffix}')
    assert ((values if values.ndim == 2 else values[..., 0]) == ids).all()


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (np.full((20, 40), 0.5, np.float32), r'holds numbers with fractions \(float32\)'),
        (np.full((20, 40), np.nan, np.float32), 'holds numbers with fractions'),
        (np.full((20, 40), -1, np.int32), 'id -1 is neither'),
        (np.zeros((1, 40), np.uint8), 'has a side of one pixel'),
    ],
)
def test_masks_that_the_toolbox_would_misread_are_refused(tmp_path, values, message):
    image, mask = tmp_path / 'a.png', tmp_path / 'a.tif'
    Image.new('RGB', values.shape[::-1]).save(image)
    write_ids(mask, values)
    assert re.search(message, look_at(File(str(image), str(mask), LabelRule(2))).problem)


def test_a_name_that_a_list_cannot_hold_is_explained(small_config, data):
    for path in sorted(data.glob('leftImg8bit/train/day/*'))[:2]:
        path.rename(data / f'{path.stem[0]}{path.stem[-16:-12]} .png')
    names = [path.stem for path in data.glob('*.png')]
    (data / 'list.txt').write_text('\n'.join(names))
    dataset = dict(_delete_=True, type='CityscapesDataset', data_root=str(data), ann_file='list.txt', img_suffix='.png')
    dataset['pipeline'] = [dict(type='LoadImageFromFile')]
    with pytest.raises(ValueError, match=r"is missing; '.* \.png' is there, but lists \(ann_file\) lose the blank"):
        train(small_config, data, **{'train_dataloader.dataset': dict(dataset, data_prefix=dict(img_path=''))})
