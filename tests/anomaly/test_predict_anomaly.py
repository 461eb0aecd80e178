"""tools/predict.py --anomaly: score maps, heat maps, masks and components of images and videos."""

import functools
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL_ARCH, make_config, run_tool
from layouts import Sizes, public_eomt
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from scipy import ndimage
from server import serve

from mmseg_eomt.anomaly.results.maps import STEPS, find_components, from_uint16, limits_of, to_uint16
from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.scores import NAMES, OF_CLASSES, Score
from mmseg_eomt.anomaly.segmentor import anomaly_maps
from mmseg_eomt.commands import predict
from mmseg_eomt.inference import load_model
from mmseg_eomt.visualization import heat_map, with_colour_bar

K = 19
EVERY = [*NAMES, 'rba@0.5', 'eam@2']


@pytest.fixture
def tool(in_process):
    return functools.partial(in_process, predict.main)


@pytest.fixture(scope='module')
def config(base) -> Path:
    return next(Path(base).parent.glob('*.py'))


@pytest.fixture(scope='module')
def images(scenes) -> Path:
    return scenes / 'leftImg8bit' / 'val'


@pytest.fixture(scope='module')
def image(images) -> Path:
    return next(images.rglob('*.png'))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def expected_map(config: Path, checkpoint: str, image: Path, name: str) -> np.ndarray:
    model = load_model(with_anomaly_scores(Config.fromfile(config), [name]), checkpoint)
    return anomaly_maps(inference_model(model, str(image)), [name])[0].numpy()


def read_png(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize('name', ['rba', 'eam', 'entropy@0.5'])
def test_each_image_gets_a_16_bit_map_that_says_what_it_means_and_a_heat_map(tool, config, base, images, tmp_path, name):
    tool(config, base, images, '--anomaly', name, '--out', tmp_path / 'out')
    out = tmp_path / 'out/anomaly'
    inputs = sorted(images.rglob('*.png'))
    names = [path.relative_to(images).as_posix() for path in inputs]
    assert files(out) == sorted([f'{kind}/{name}' for kind in ('heatmaps', 'scores') for name in names] + ['scores.json'])
    known = json.loads((out / 'scores.json').read_text())
    assert known['score'] == name and known['num_classes'] == K
    for path, found in zip(inputs, names):
        values = read_png(out / 'scores' / found)
        assert values.dtype == np.uint16 and values.shape == (64, 128)
        scores = known['low'] + values / STEPS * (known['high'] - known['low'])
        expected = expected_map(config, base, path, name).clip(known['low'], known['high'])
        assert np.abs(scores - expected).max() <= (known['high'] - known['low']) / STEPS
        picture = read_png(out / 'heatmaps' / found)
        assert picture.shape[0] >= 64 and picture.shape[1] > 128 + 50


def test_labels_and_overlays_are_bit_identical_with_and_without_an_anomaly_score(tool, config, base, images, tmp_path):
    tool(config, base, images, '--out', tmp_path / 'plain')
    assert not (tmp_path / 'plain/anomaly').exists()
    for name in ('rba', 'void'):
        out = tmp_path / name
        tool(config, base, images, '--anomaly', name, '--out', out)
        for file in files(tmp_path / 'plain'):
            assert (out / file).read_bytes() == (tmp_path / 'plain' / file).read_bytes(), file


def test_float_maps_are_those_of_the_model(tool, config, base, image, tmp_path):
    tool(config, base, image, '--anomaly', 'rba', '--score-format', 'npy', '--out', tmp_path)
    scores = np.load(tmp_path / 'anomaly/scores' / f'{image.stem}.npy')
    assert scores.dtype == np.float32 and (scores == expected_map(config, base, image, 'rba')).all()


def test_the_colours_range_as_asked(tool, config, base, image, tmp_path):
    scores = expected_map(config, base, image, 'rba')
    low, high = (float(np.quantile(scores, share)) for share in (0.1, 0.9))
    tool(config, base, image, '--anomaly', 'rba', '--heat-range', low, high, '--out', tmp_path)
    picture = read_png(tmp_path / 'anomaly/heatmaps' / image.name)[:64, :128, ::-1]
    assert (picture == heat_map(read_png(image)[..., ::-1], scores, low, high)).all()


def test_a_threshold_gives_masks_components_and_the_unknown_in_the_overlay(tool, config, base, image, tmp_path):
    scores = expected_map(config, base, image, 'rba')
    threshold = float(np.quantile(scores, 0.9))
    arguments = (config, base, image, '--anomaly', 'rba', '--threshold', threshold)
    tool(*arguments, '--min-area', 20, '--score-format', 'npy', '--out', tmp_path)
    out = tmp_path / 'anomaly'
    mask = read_png(out / 'masks' / image.name)
    components = json.loads((out / 'components.json').read_text())[image.stem]
    ids, number = ndimage.label(scores >= threshold, np.ones((3, 3)))
    kept = [i for i in range(1, number + 1) if (ids == i).sum() >= 20]
    assert kept and set(np.unique(mask)) == {0, 255}
    assert ((mask > 0) == np.isin(ids, kept)).all()
    assert [component['area'] for component in components] == sorted(((ids == i).sum() for i in kept), reverse=True)
    left, top, width, height = components[0]['box']
    largest = max(kept, key=lambda i: (ids == i).sum())
    rows, columns = np.nonzero(ids == largest)
    assert [left, top, width, height] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert components[0]['mean_score'] == pytest.approx(scores[ids == largest].mean(), rel=1e-5)
    assert components[0]['max_score'] == scores[ids == largest].max()
    overlay = read_png(tmp_path / 'overlays' / image.name)[..., ::-1]
    inside = (overlay[:64, :128] == (0, 255, 255)).all(-1)
    assert inside.any() and (overlay[:, 128:] == (0, 255, 255)).all(-1).any()  # in the picture and in the legend
    assert json.loads((out / 'scores.json').read_text())['threshold'] == threshold


def test_a_video_gives_a_heat_map_video_and_files_of_its_frames(tool, config, base, images, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'drive.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (128, 64))
    frames = [cv2.imread(str(path)) for path in sorted(images.rglob('*.png'))]
    for frame in frames:
        writer.write(frame)
    writer.release()
    tool(config, base, tmp_path / 'drive.avi', '--anomaly', 'max', '--threshold', 0.5, '--out', tmp_path / 'out')
    for folder in ('overlays', 'anomaly/heatmaps'):
        video = cv2.VideoCapture(str(tmp_path / 'out' / folder / 'drive.mp4'))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == len(frames), folder
    numbers = [f'drive/{i:06d}.png' for i in range(len(frames))]
    for folder in ('labels', 'anomaly/scores', 'anomaly/masks'):
        assert files(tmp_path / 'out' / folder) == numbers, folder
    components = json.loads((tmp_path / 'out/anomaly/components.json').read_text())
    assert list(components) == [f'drive/{i:06d}' for i in range(len(frames))]


def test_results_are_no_inputs_the_next_time(tool, config, base, image, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    shutil.copy(image, folder / '1.png')
    for said in ('Wrote', '5 files of'):
        log = tool(config, base, folder, '--anomaly', 'max', '--threshold', 0.5, '--out', folder / 'out')
        assert said in log
        assert files(folder / 'out/anomaly/scores') == ['1.png']


def test_a_run_that_is_stopped_has_the_components_of_what_it_has_written(config, base, images, tmp_path, monkeypatch):
    save, names = predict.Predictor.save, []

    def stopped(self, name, *found):
        if names:
            raise KeyboardInterrupt
        names.append(name)
        save(self, name, *found)

    monkeypatch.setattr(predict.Predictor, 'save', stopped)
    with pytest.raises(KeyboardInterrupt):
        predict.main([*map(str, (config, base, images, '--anomaly', 'max', '--threshold', 0, '--out', tmp_path))])
    assert list(json.loads((tmp_path / 'anomaly/components.json').read_text())) == names


def test_a_broken_image_is_named_and_the_others_have_their_maps(tool, config, base, image, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    shutil.copy(image, folder / '1.png')
    (folder / '2.png').write_bytes(image.read_bytes()[:500])
    log = tool(config, base, folder, '--anomaly', 'rba', '--out', tmp_path / 'out', check=False)
    assert '1 of 2 inputs could not be predicted' in log
    assert files(tmp_path / 'out/anomaly/heatmaps') == ['1.png']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--anomaly', 'rbe'], "An anomaly score is one of rba, rba_sum, .* got 'rbe'"),
        (['--threshold', '0.5'], '--threshold belong to an anomaly score: add --anomaly rba, say'),
        (['--anomaly', 'rba', '--threshold', 'often'], "A threshold is fpr=0.01 .* got 'often'"),
        (['--anomaly', 'rba', '--threshold', 'fpr=1.5'], 'with a rate above 0 and up to 1'),
        (['--anomaly', 'rba', '--threshold', '0', '--min-area', '0'], '--min-area is 1 or more, got 0'),
        (['--anomaly', 'rba', '--heat-range', '0', '-1'], '--heat-range is a lower and a higher score'),
        (['--anomaly', 'rba', '--format', 'smiyc'], '--format smiyc needs --dataset NAME'),
        (['--anomaly', 'rba', '--format', 'bravo', '--threshold', '0'], 'leave out --threshold'),
    ],
)
def test_mistakes_end_with_one_sentence_before_the_model_is_made(
    tool, config, base, image, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr('mmseg_eomt.commands.predict.load_model', lambda *_: pytest.fail('a model was made'))
    assert re.search(message, tool(config, base, image, *options, '--out', tmp_path, check=False), re.S)
    assert files(tmp_path) == []


def test_the_model_of_another_head_has_scores_of_classes_and_refuses_those_of_queries(scenes, tmp_path, tool, image):
    config = make_config(scenes, tmp_path / 'run')
    head = dict(_delete_=True, type='FCNHead', in_channels=32, channels=8, num_convs=1, num_classes=K)
    config.merge_from_dict({'model.vit.num_joint_blocks': 0, 'model.decode_head': head})
    config.dump(tmp_path / 'fcn.py')
    torch.save(dict(state_dict=init_model(config, device='cpu').state_dict(), meta={}), tmp_path / 'fcn.pth')
    tool(tmp_path / 'fcn.py', tmp_path / 'fcn.pth', image, '--anomaly', 'rba_sum', '--out', tmp_path / 'out')
    assert (tmp_path / 'out/anomaly/scores' / image.name).is_file()
    log = tool(tmp_path / 'fcn.py', tmp_path / 'fcn.pth', image, '--anomaly', 'eam', '--out', tmp_path / 'x', check=False)
    assert 'eam need the queries of an EoMT' in log


@pytest.mark.parametrize('name', EVERY)
def test_limits_hold_every_score_of_up_to_twice_a_sure_class(name):
    score = Score.parse(name)
    low, inlier, high = limits = limits_of(score, K)
    assert low <= inlier < high
    if score.name in OF_CLASSES:
        shares = torch.rand(K, 50, 50, generator=torch.Generator().manual_seed(0)).softmax(0)
        for scores in (0 * shares, shares, torch.eye(K)[..., None], 2 * torch.eye(K)[..., None]):
            values = OF_CLASSES[score.name](scores)
            assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        sure = OF_CLASSES[score.name](torch.eye(K)[:1].T[..., None])
        assert float(sure) == pytest.approx(inlier, abs=1e-6)
    values = np.linspace(low, high, 1000, dtype=np.float32).reshape(10, 100)
    assert np.abs(from_uint16(to_uint16(values, limits), limits) - values).max() <= 0.51 * (high - low) / STEPS
    assert to_uint16(np.array([low - 1, high + 1]), limits).tolist() == [0, STEPS]
    with pytest.raises(ValueError, match='NaN at 1 of 2 pixels'):
        to_uint16(np.array([np.nan, 0]), limits)


def test_diagonal_neighbours_are_one_component_and_small_ones_are_dropped():
    scores = np.array([[9, 0, 0, 0], [0, 8, 0, 5], [0, 0, 0, 0]], np.float32)
    mask, found = find_components(scores, 5)
    assert [(c.box, c.area, c.mean_score, c.max_score) for c in found] == [
        ((0, 0, 2, 2), 2, 8.5, 9),
        ((3, 1, 1, 1), 1, 5, 5),
    ]
    assert mask.tolist() == (scores >= 5).tolist()
    mask, found = find_components(scores, 5, min_area=2)
    assert len(found) == 1 and mask.sum() == 2
    assert find_components(scores, 10)[1] == []


@pytest.mark.parametrize('size', [(16, 40), (300, 500)])
def test_a_heat_map_is_brighter_where_scores_are_higher_and_its_bar_fits_any_size(size):
    image = np.full((*size, 3), 100, np.uint8)
    values = np.tile(np.linspace(-2, 1, size[1]), (size[0], 1))
    picture = heat_map(image, values, -1, 0)
    brightness = picture.astype(int).sum(-1)[0]
    assert (np.diff(brightness) >= -3).all() and brightness[-1] > 2 * brightness[0]
    barred = with_colour_bar(picture, -1, 0, 'rba', ('known', 'unknown'), mark=-0.4)
    assert (barred[: size[0], : size[1]] == picture).all()
    assert (barred[:, size[1] :] == (0, 255, 255)).all(-1).any()


def test_a_stranger_with_the_public_checkpoint_and_a_folder_of_images_gets_maps_with_one_command(scenes, images, tmp_path):
    config = make_config(scenes, tmp_path / 'run')
    sizes = Sizes(1, dims=32, heads=2, layers=4, gated=False, hidden=128, registers=4, scales=True, grid=4, patch=16)
    sizes.queries, sizes.classes, sizes.joint = 12, K, 2
    assert SMALL_ARCH['embed_dims'] == sizes.dims
    hub = tmp_path / 'hub/tue-mps/cityscapes_semantic_eomt_large_1024'
    hub.mkdir(parents=True)
    torch.save(public_eomt(sizes), hub / 'pytorch_model.bin')
    config.dump(tmp_path / 'config.py')
    with serve(tmp_path / 'hub', hub=True) as (address, _):
        env = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / 'hf'), HF_HUB_DISABLE_XET='1')
        name = 'hf://tue-mps/cityscapes_semantic_eomt_large_1024'
        out = tmp_path / 'predictions'
        log = run_tool(
            'tools/predict.py', tmp_path / 'config.py', name, images, '--anomaly', 'rba', '--out', out, **env
        ).stdout
    assert f'and {out}/anomaly' in log
    assert len(files(out / 'anomaly/heatmaps')) == len(files(out / 'anomaly/scores')) == len(list(images.rglob('*.png')))
