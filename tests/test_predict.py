"""tools/predict.py and tools/show_queries.py: from a checkpoint to label maps and pictures."""

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from conftest import run_tool
from mmengine.runner import Runner
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_eomt.commands import predict, show_queries
from mmseg_eomt.inference import class_names, load_model
from mmseg_eomt.visualization import overlay, sheet, with_legend

COMMANDS = dict(predict=predict.main, show_queries=show_queries.main)


@pytest.fixture
def tool(capsys):
    """Run a command in this process: ``tool('predict', …)``; its output and its last words."""

    def run(name: str, *args: object, check: bool = True) -> str:
        status = None
        try:
            COMMANDS[name]([*map(str, args)])
        except SystemExit as error:
            status = error.code
        assert (status is None) == check, status
        return f'{capsys.readouterr().out}{status}'

    return run


@pytest.fixture
def config(small_config, config_file, lora) -> Path:
    return config_file(small_config(lora=True))


@pytest.fixture
def images(scenes) -> Path:
    return scenes / 'leftImg8bit' / 'val'


def labels(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.array(Image.open(path)) for path in sorted(folder.rglob('*.png'))}


def test_a_folder_gives_the_labels_of_the_evaluation_in_batches_or_alone(tool, small_config, config, lora, images, tmp_path):
    evaluation = small_config(lora=True, load_from=lora, name='test')
    evaluation.test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], output_dir=str(tmp_path / 'expected'))
    Runner.from_cfg(evaluation).test()
    expected = labels(tmp_path / 'expected')

    for size in (1, 3):
        tool('predict', config, lora, images, '--out', tmp_path / str(size), '--batch-size', size)
        found = labels(tmp_path / str(size) / 'labels')
        assert sorted(found) == sorted(p.relative_to(images).as_posix() for p in images.rglob('*.png'))
        for name, ids in found.items():
            assert ids.dtype == np.uint8 and ids.shape == (64, 128)
            assert (ids == expected[Path(name).name]).all()


def test_the_overlay_has_the_colours_of_the_classes_and_their_names_beside_it(tool, config, lora, images, tmp_path):
    image = next(images.rglob('*.png'))
    tool('predict', config, lora, image, '--out', tmp_path / 'out', '--opacity', 1)
    (ids,) = labels(tmp_path / 'out/labels').values()
    (picture,) = labels(tmp_path / 'out/overlays').values()
    assert (picture[:64, :128] == np.array(CityscapesDataset.METAINFO['palette'])[ids]).all()
    assert picture.shape[1] > 200  # the legend
    tool('predict', config, lora, image, '--out', tmp_path / 'out', '--opacity', 0)
    (picture,) = labels(tmp_path / 'out/overlays').values()
    assert (picture[:64, :128] == np.array(Image.open(image))).all()


def test_a_video_gives_a_video_and_the_labels_of_its_frames(tool, config, lora, images, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'drive.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 64))
    frames = [cv2.imread(str(path)) for path in sorted(images.rglob('*.png'))]
    for frame in frames:
        writer.write(frame)
    writer.release()
    tool('predict', config, lora, tmp_path / 'drive.avi', '--out', tmp_path / 'out', '--batch-size', 3)
    video = cv2.VideoCapture(str(tmp_path / 'out/overlays/drive.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == len(frames)
    assert video.get(cv2.CAP_PROP_FPS) == 5
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) > 128
    assert list(labels(tmp_path / 'out/labels')) == [f'drive/{i:06d}.png' for i in range(len(frames))]


def test_images_of_many_sizes_go_together_and_a_broken_one_is_named_at_the_end(tool, config, lora, images, tmp_path):
    source = Image.open(next(images.rglob('*.png')))
    folder = tmp_path / 'in'
    folder.mkdir()
    (folder / '._0.jpg').write_bytes(b'of a file manager')
    for i, size in enumerate([(128, 64), (100, 80), (100, 80), (33, 47)]):
        source.resize(size).save(folder / f'{i}.jpg')
    (folder / 'broken.jpg').write_bytes((folder / '0.jpg').read_bytes()[:400])
    log = tool('predict', config, lora, folder, '--out', tmp_path / 'out', check=False)
    assert '1 of 5 inputs could not be predicted' in log and 'broken.jpg: the image cannot be read' in log
    assert [ids.shape for ids in labels(tmp_path / 'out/labels').values()] == [(64, 128), (80, 100), (80, 100), (47, 33)]


def test_what_cannot_be_predicted_is_refused_in_a_sentence(tool, config, lora, images, tmp_path):
    (tmp_path / 'notes.txt').write_text('x')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'film.mp4').write_bytes(b'x')
    image = next(images.rglob('*.png'))
    (tmp_path / 'twin').mkdir()
    Image.open(image).save(tmp_path / 'twin' / image.name)
    for inputs, message in (
        ([tmp_path / 'none.png'], 'none.png does not exist'),
        ([tmp_path / 'notes.txt'], 'notes.txt is no image'),
        ([tmp_path / 'empty'], 'empty holds no image and no video'),
        ([image, tmp_path / 'twin'], 'would both be written to'),
        ([tmp_path / 'film.mp4'], 'film.mp4: the video cannot be read'),
    ):
        assert message in tool('predict', config, lora, *inputs, '--out', tmp_path / 'out', check=False)
    assert 'none.pth' in tool('predict', config, tmp_path / 'none.pth', image, check=False)


def test_the_command_runs_as_a_user_runs_it(config, lora, images, tmp_path):
    out = run_tool('tools/predict.py', config, lora, images, '--out', tmp_path / 'out').stdout
    assert '4/4' in out and f'Wrote {tmp_path}/out/overlays' in out


def test_names_come_from_the_config_and_have_to_fit(small_config, config_file, lora):
    options = {'test_dataloader.dataset.metainfo': dict(classes=[f'c{i}' for i in range(19)])}
    model = load_model(str(config_file(small_config(lora=True, **options))), lora)
    assert model.dataset_meta['classes'][3] == 'c3' and len(set(model.dataset_meta['palette'])) == 19
    options = {'test_dataloader.dataset.metainfo': dict(classes=['a', 'b'])}
    with pytest.raises(ValueError, match=r"has 19 classes, but the names of its data are 2: \['a', 'b'\]"):
        load_model(str(config_file(small_config(lora=True, **options))), lora)


def test_an_image_of_an_extreme_shape_is_named_and_the_others_go_on(tool, config, lora, images, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for i, size in enumerate([(128, 64), (4000, 1), (2, 5000), (2, 5000), (128, 64)]):
        Image.new('RGB', size).save(folder / f'{i}.png')
    log = tool('predict', config, lora, folder, '--out', tmp_path / 'out', check=False)
    assert '3 of 5 inputs could not be predicted' in log
    assert f'{folder}/1.png: there is no prediction of 4000×1 pixels (' in log
    assert f'{folder}/3.png: there is no prediction of 2×5000 pixels (' in log
    assert sorted(labels(tmp_path / 'out/labels')) == ['0.png', '4.png']


@pytest.mark.parametrize('name', ['predict', 'show_queries'])
@pytest.mark.parametrize('place', ['file', 'file/below', '/proc/none'])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_model_is_made(
    tool, config, lora, images, tmp_path, monkeypatch, name, place
):
    monkeypatch.setattr(f'mmseg_eomt.commands.{name}.load_model', lambda *_: pytest.fail('a model was made'))
    (tmp_path / 'file').write_text('of the user')
    image, out = next(images.rglob('*.png')), tmp_path / place
    folder = out / 'overlays' if name == 'predict' else out
    log = tool(name, config, lora, image, '--out', out if name == 'predict' else out / 'sheet.png', check=False)
    assert f'{name}: {folder} cannot be written to' in log
    assert (tmp_path / 'file').read_text() == 'of the user'


def test_nothing_is_left_where_no_result_could_be_made(tool, config, images, tmp_path):
    tool('predict', config, tmp_path / 'none.pth', images, '--out', tmp_path / 'a/b', check=False)
    assert not (tmp_path / 'a').exists()


def test_an_interrupted_video_leaves_the_earlier_one(tool, config, lora, tmp_path, monkeypatch):
    video = tmp_path / 'drive.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 64))
    for _ in range(4):
        writer.write(np.zeros((64, 128, 3), np.uint8))
    writer.release()
    overlay_file = tmp_path / 'out/overlays/drive.mp4'
    overlay_file.parent.mkdir(parents=True)
    overlay_file.write_text('of an earlier run')
    plain = predict.Predictor.samples

    def samples_until_interrupted(self, images):
        if list((tmp_path / 'out/labels/drive').glob('*.png')):
            raise KeyboardInterrupt
        return plain(self, images)

    monkeypatch.setattr(predict.Predictor, 'samples', samples_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool('predict', config, lora, video, '--out', tmp_path / 'out', '--batch-size', 2)
    assert overlay_file.read_text() == 'of an earlier run'
    assert [path.name for path in overlay_file.parent.iterdir()] == ['drive.mp4']


def test_classes_and_colours_may_be_arrays(tool, small_config, config_file, lora, images, tmp_path):
    @DATASETS.register_module(name='ArraysDataset', force=True)
    class ArraysDataset(CityscapesDataset):
        METAINFO: ClassVar = {name: np.array(value) for name, value in CityscapesDataset.METAINFO.items()}

    file = config_file(small_config(lora=True, **{'test_dataloader.dataset.type': 'ArraysDataset'}))
    assert load_model(str(file), lora).dataset_meta == {
        'classes': list(CityscapesDataset.METAINFO['classes']),
        'palette': [tuple(colour) for colour in CityscapesDataset.METAINFO['palette']],
    }
    tool('predict', file, lora, next(images.rglob('*.png')), '--out', tmp_path / 'out')
    config = small_config(lora=True).test_dataloader.dataset
    config['metainfo'] = dict(classes=np.array(['a', 'b']), palette=np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    assert class_names(config) == dict(classes=['a', 'b'], palette=[(1, 2, 3), (4, 5, 6)])
    assert 'numpy' not in str(type(class_names(config)['palette'][0][0]))


def test_too_few_colours_are_refused(small_config, config_file, lora):
    options = {'test_dataloader.dataset.metainfo': dict(palette=[[1, 2, 3]])}
    with pytest.raises(ValueError, match='19 classes need as many colours, but palette has 1'):
        load_model(str(config_file(small_config(lora=True, **options))), lora)


def test_two_types_of_one_name_are_both_written(tool, config, lora, images, tmp_path):
    for suffix in ('.jpg', '.png'):
        Image.open(next(images.rglob('*.png'))).save(tmp_path / f'1{suffix}')
    tool('predict', config, lora, tmp_path / '1.jpg', tmp_path / '1.png', '--out', tmp_path / 'out')
    assert sorted(labels(tmp_path / 'out/labels')) == ['1.png', '1.png.png']


def test_results_in_a_folder_of_images_are_no_images_the_next_time(tool, config, lora, images, tmp_path):
    folder = tmp_path / 'in'
    (folder / 'labels').mkdir(parents=True)  # of somebody else's
    for name in ('1.png', 'labels/2.png'):
        Image.open(next(images.rglob('*.png'))).save(folder / name)
    for said in ('Wrote', '4 files of'):
        assert said in tool('predict', config, lora, folder, '--out', folder / 'out')
        assert sorted(labels(folder / 'out/labels')) == ['1.png', 'labels/2.png']
    tool('predict', config, lora, folder / 'out/overlays', '--out', folder / 'out')  # asked for by name
    assert 'labels/2.png' in labels(folder / 'out/labels')


def test_names_that_the_checkpoint_was_not_trained_with_are_pointed_at(small_config, config_file, lora):
    names = [f'c{i}' for i in range(19)]
    file = config_file(small_config(lora=True, **{'test_dataloader.dataset.metainfo': dict(classes=names)}))
    with pytest.warns(UserWarning, match='the checkpoint was trained with'):
        load_model(str(file), lora)


def test_the_sheet_of_queries_is_drawn(tool, config, lora, images, tmp_path):
    image = next(images.rglob('*.png'))
    assert 'Wrote' in tool('show_queries', config, lora, image, '--out', tmp_path / 'sheet.png')
    assert Image.open(tmp_path / 'sheet.png').width > 800
    log = tool('show_queries', config, lora, Path(__file__), check=False)
    assert 'test_predict.py: the image cannot be read' in log


def test_every_layer_predicts_in_evaluation_without_masks_and_the_last_as_without(config, lora):
    model = load_model(str(config), lora)
    head, image = model.decode_head, torch.rand(1, 3, 64, 64)
    head.set_mask_probs([1.0] * head.num_joint_blocks)
    with torch.no_grad():
        feats = model.extract_feat(image)
        masks, classes = head(feats, every_layer=True)
        last = head(feats)
    assert len(masks) == len(classes) == head.num_joint_blocks + 1
    assert torch.equal(masks[-1], last[0][0]) and torch.equal(classes[-1], last[1][0])
    assert len(last[0]) == 1 and not torch.equal(masks[0], masks[-1])


def test_colours_cover_classes_and_leave_the_rest():
    image = np.full((4, 4, 3), 100, np.uint8)
    ids = np.array([[0, 1, 255, 255]] * 4)
    picture = overlay(image, ids, [(200, 0, 0), (0, 200, 0)])
    assert picture[0].tolist() == [[150, 50, 50], [50, 150, 50], [100] * 3, [100] * 3]


@pytest.mark.parametrize('size', [(16, 40), (300, 500)])
def test_a_legend_of_many_classes_takes_more_columns(size):
    picture = np.zeros((*size, 3), np.uint8)
    palette = [(i, i, i) for i in range(150)]
    few, many = (with_legend(picture, [f'class {i}' for i in range(150)], palette, range(n)) for n in (2, 150))
    assert len(few) == len(many) == max(24, size[0])
    assert size[1] < few.shape[1] < many.shape[1]
    assert (many[: size[0], : size[1]] == 0).all()


def test_a_sheet_holds_pictures_of_any_shape():
    pictures = [np.zeros((h, w, 3), np.uint8) for h, w in ((10, 20), (300, 100), (50, 50), (1, 900))]
    assert sheet(pictures, ['a', 'b', 'c', 'd'], columns=2, width=100).shape[1] == 2 * 108
