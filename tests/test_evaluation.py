"""The published evaluation: its image sizes, its windows, its scores, against a plain reimplementation here."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, make_config, relative_error, small_recipe
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from PIL import Image
from test_configs import RECIPES
from test_docs_code import blocks

from mmseg_eomt.data import EoMTResize
from mmseg_eomt.export import ImageToScores
from mmseg_eomt.models.segmentor import share_vit, window_spans

SIDE = 64  # of a window, in place of 512
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
# 5:2 and 2:5 (three windows), longer than 5:1 and 1:5 (six), square, two windows, a side of 102.5 pixels
SHAPES = [(50, 125), (125, 50), (38, 200), (200, 38), (96, 96), (40, 70), (80, 128), (64, 205)]


def starts(length: int, window: int) -> list[int]:
    return [span.start for span in window_spans(length, window)]


@pytest.mark.parametrize(
    ('length', 'window', 'expected'),
    [
        (1280, 512, [0, 384, 768]),  # an image of 400×1000, where the toolbox has 0, 512, 768
        (2560, 512, [0, 512, 1024, 1536, 2048]),  # of 300×1500
        (2048, 1024, [0, 1024]),  # Cityscapes
        (1281, 512, [0, 384, 769]),
        (513, 512, [0, 1]),
        (512, 512, [0]),
        (300, 512, [0]),
        (1, 512, [0]),
    ],
)
def test_windows_start_where_the_public_code_has_them(length, window, expected):
    assert starts(length, window) == expected
    assert all(span.stop - span.start == min(length, window) for span in window_spans(length, window))


@pytest.mark.parametrize('window', [512, 640, 1024])
def test_windows_are_spread_evenly_at_any_length(window):
    for length in range(window + 1, 7 * window + 1):
        number = -(-length // window)
        even = [math.floor(Fraction(i * (length - window), number - 1)) for i in range(number)]
        assert starts(length, window) == even, length


@pytest.mark.parametrize('window', [320, 512, 640, 1024])
def test_windows_are_the_public_codes_in_floating_point_and_reach_the_edge(window):
    """There, the last window of some sides of eight windows and more ends a pixel early; here it does not."""
    for length in range(window + 1, 40 * window, 3):
        number = math.ceil(length / window)
        excess = (number * window - length) / (number - 1)
        published = [int(i * (window - excess)) for i in range(number)]
        given = starts(length, window)
        assert given[:-1] == published[:-1] and given[-1] == length - window, length
        assert published[-1] in (given[-1], given[-1] - 1)
        assert all(b - a <= window for a, b in itertools.pairwise(given)), length


@pytest.mark.parametrize(
    ('shape', 'size', 'expected'),
    [
        ((400, 1000), 512, (512, 1280)),
        ((300, 1500), 512, (512, 2560)),  # the toolbox's Resize made 410×2048 of it
        ((1500, 300), 512, (2560, 512)),
        ((1024, 1365), 512, (512, 682)),  # 682.5: the even number
        ((1024, 2048), (1024, 1024), (1024, 2048)),
        ((100, 100), (64, 128), (128, 128)),
    ],
)
def test_the_image_just_covers_a_window(shape, size, expected):
    results = EoMTResize(size)(dict(img=np.zeros((*shape, 3), np.uint8)))
    assert results['img'].shape == (*expected, 3)
    assert results['img_shape'] == expected
    assert results['scale'] == expected[::-1]
    assert results['scale_factor'] == (expected[1] / shape[1], expected[0] / shape[0])


def test_an_image_is_shrunk_with_antialiasing_and_labels_that_are_there_to_its_size():
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (200, 300, 3), np.uint8), rng.integers(0, 19, (200, 300), np.uint8)
    results = EoMTResize(64)(dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map']))
    assert np.array_equal(results['img'], np.array(Image.fromarray(image).resize((96, 64), Image.BILINEAR)))
    assert results['img'].std() < 0.6 * cv2.resize(image, (96, 64)).std()  # as the toolbox's has it: noise stays
    assert results['gt_seg_map'].shape == (64, 96) and set(np.unique(results['gt_seg_map'])) <= set(range(19))

    same = EoMTResize(200)(dict(img=image.copy()))['img']
    assert np.array_equal(same, image)


@pytest.mark.parametrize('size', [0, (64,), (64, 0), (64.0, 64)])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r'size is one number of pixels or two, \(rows, columns\), got'):
        EoMTResize(size)


def test_images_that_cannot_be_evaluated_so_are_refused_by_name():
    step = EoMTResize(64)
    with pytest.raises(ValueError, match=r'uint8, and a\.tif is float32: remove to_float32'):
        step(dict(img=np.zeros((9, 9, 3), np.float32), img_path='a.tif'))
    with pytest.raises(ValueError, match=r'thin\.png has 10×650 pixels .* 64×4160, which is more than 64 windows of 64×64'):
        step(dict(img=np.zeros((10, 650, 3), np.uint8), img_path='thin.png'))


def published_scores(model: torch.nn.Module, path: Path) -> torch.Tensor:
    """Class scores (K, H, W) of an image file as the public code makes them, all windows at once."""
    image = Image.open(path).convert('RGB')
    sides = image.height, image.width
    factor = max(SIDE / side for side in sides)
    height, width = (round(side * factor) for side in sides)
    pixels = torch.from_numpy(np.array(image.resize((width, height), Image.BILINEAR))).float()
    pixels = ((pixels - MEAN) / STD).permute(2, 0, 1)
    axis = 1 if height > width else 2
    length = max(height, width)
    number = math.ceil(length / SIDE)
    step = SIDE - ((number * SIDE - length) / (number - 1) if number > 1 else 0)
    begins = [int(i * step) for i in range(number)]
    windows = torch.stack([pixels.narrow(axis, begin, SIDE) for begin in begins])
    with torch.no_grad():
        masks, classes = (layers[-1] for layers in model.decode_head(model.extract_feat(windows)))
        masks = F.interpolate(masks, (SIDE, SIDE), mode='bilinear').sigmoid()
        scores = torch.einsum('bqhw,bqk->bkhw', masks, classes.softmax(-1)[..., :-1])
        total, count = torch.zeros(scores.shape[1], height, width), torch.zeros(1, height, width)
        for begin, part in zip(begins, scores):
            total.narrow(axis, begin, SIDE).add_(part)
            count.narrow(axis, begin, SIDE).add_(1)
        return F.interpolate((total / count)[None], sides, mode='bilinear')[0]


def ade20k_config(folder: Path) -> Config:
    """The ADE20K recipe on small windows and a small model."""
    config = small_recipe('eomt_ade20k_512.py', SIDE)
    config.model.test_cfg = dict(Config.fromfile(ROOT / 'configs' / 'eomt_ade20k_512.py').model.test_cfg)
    config.model.test_cfg.update(crop_size=(SIDE, SIDE), stride=(SIDE, SIDE))
    config.tta_pipeline[1].transforms[0] = [dict(type='EoMTResize', size=size) for size in (48, 64, 80)]
    config.test_pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.data_root = str(folder)
    config.merge_from_dict({'work_dir': str(folder / 'run'), 'experiment_name': folder.name})
    return config


@pytest.fixture
def model(tmp_path) -> torch.nn.Module:
    """A small model with random weights whose scores differ from pixel to pixel."""
    model = init_model(ade20k_config(tmp_path), device='cpu')
    torch.nn.init.normal_(model.decode_head.class_head.weight)
    for part in model.decode_head.mask_head.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.3)
    return model


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Images of :data:`SHAPES`, in ADE20K's layout."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'images' / 'validation'
    folder.mkdir(parents=True)
    paths = []
    for i, shape in enumerate(SHAPES):
        coarse = rng.integers(0, 256, (shape[0] // 8 + 2, shape[1] // 8 + 2, 3), np.uint8)
        paths.append(folder / f'{i}.jpg')
        cv2.imwrite(str(paths[-1]), cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC))
    return paths


def test_scores_are_the_published_evaluations(model, files):
    for path in files:
        expected = published_scores(model, path)
        given = inference_model(model, str(path))
        assert given.seg_logits.data.shape == expected.shape
        assert relative_error(given.seg_logits.data, expected) < 1e-5, path
        assert (given.pred_sem_seg.data[0] == expected.argmax(0)).float().mean() > 0.999


def test_the_toolboxs_windows_are_one_option_away_and_differ_from_three_on(model, files, tmp_path):
    evenly = [inference_model(model, str(path)).seg_logits.data for path in files]
    model.test_cfg.mode = 'slide'
    flush = [inference_model(model, str(path)).seg_logits.data for path in files]
    same = [relative_error(a, b) < 1e-6 for a, b in zip(evenly, flush)]
    assert same == [max(shape) <= 2 * min(shape) for shape in SHAPES]


def test_images_of_one_size_are_evaluated_together_as_alone(model, files):
    images = [cv2.imread(str(files[0])), cv2.imread(str(files[0]))[::-1].copy()]
    together = inference_model(model, images)
    for image, result in zip(images, together):
        alone = inference_model(model, image)
        assert relative_error(result.seg_logits.data, alone.seg_logits.data) < 1e-5


def test_windows_spread_over_both_sides_and_an_image_below_their_size_is_one(model):
    seen = []
    model.encode_decode = lambda part, metas: seen.append(part.shape[2:]) or part[:, :1].expand(-1, 150, -1, -1)
    for shape, number in {(48, 40): 1, (64, 64): 1, (80, 48): 2, (80, 150): 6}.items():
        seen.clear()
        image = torch.rand(1, 3, *shape)
        scores = model.inference(image, [dict(ori_shape=shape, img_shape=shape)])
        assert torch.allclose(scores[:, 0], image[:, 0])  # each pixel is where it was
        assert seen == [tuple(min(side, SIDE) for side in shape)] * number


def write_labels(folder: Path, name: str, predicted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask that agrees with a prediction in most places, with classes from 1 on; 0 is ignored."""
    labels = predicted.astype(np.uint8) + 1
    labels[: len(labels) // 5] = 0
    labels[:, : labels.shape[1] // 4] = np.roll(labels[:, : labels.shape[1] // 4], 7, 0)
    labels[-3:] = rng.integers(1, 4, labels[-3:].shape)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'{name}.png'), labels)
    return labels


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of predictions (0 to 149) and labels (1 to 150), over the classes that occur in either, in percent."""
    counts = np.zeros((150, 150), np.int64)
    for predicted, labels in pairs:
        known = labels > 0
        np.add.at(counts, (labels[known].astype(int) - 1, predicted[known]), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return 100 * float((counts.diagonal()[union > 0] / union[union > 0]).mean())


def test_a_run_on_ade20k_measures_the_published_evaluation(model, files, tmp_path):
    rng = np.random.default_rng(1)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'model.pth')
    expected = {path.stem: published_scores(model, path).argmax(0).numpy() for path in files}
    labels = tmp_path / 'annotations' / 'validation'
    pairs = [(found, write_labels(labels, name, found, rng)) for name, found in expected.items()]
    measured = {}
    for mode in ('slide_evenly', 'slide', 'tta'):
        config = ade20k_config(tmp_path)
        config.merge_from_dict({'load_from': str(tmp_path / 'model.pth'), 'experiment_name': f'{tmp_path.name}_{mode}'})
        config.test_evaluator.output_dir = str(tmp_path / mode)
        if mode == 'tta':  # as tools/test.py --tta does
            config.test_dataloader.dataset.pipeline = config.tta_pipeline
            config.model = dict(config.tta_model, module=config.model)
        else:
            config.model.test_cfg.mode = mode
        measured[mode] = Runner.from_cfg(config).test()['mIoU']

    for name, found in expected.items():
        written = cv2.imread(str(tmp_path / 'slide_evenly' / f'{name}.png'), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(written, found + 1)
    assert measured['slide_evenly'] == pytest.approx(mean_iou(pairs), abs=0.006)  # the toolbox rounds
    assert 20 < measured['slide_evenly'] < 95
    assert measured['slide'] != measured['slide_evenly']
    assert 0 < measured['tta'] < measured['slide_evenly']


def test_masks_are_applied_in_evaluation_where_it_is_asked_for_and_their_probability_is_above_0(model, files):
    def scores(seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        return inference_model(model, str(files[4])).seg_logits.data  # one window

    head = model.decode_head
    plain = scores()
    head.set_mask_probs((0.5, 0.5))
    assert torch.equal(scores(), plain)  # as when a published model is evaluated

    model.test_cfg.masked_attention = True
    assert not torch.allclose(scores(0), scores(1))  # which queries are masked is drawn, as published
    head.set_mask_probs((0, 0))
    assert torch.equal(scores(), plain)

    head.set_mask_probs((1, 1))
    masked = scores()
    image = torch.from_numpy(cv2.imread(str(files[4]))).permute(2, 0, 1)
    image = EoMTResize(SIDE)(dict(img=image.permute(1, 2, 0).numpy()))['img'][..., ::-1].copy()
    pixels = ((torch.from_numpy(image).float() - MEAN) / STD).permute(2, 0, 1)[None]
    with torch.no_grad():
        masks, classes = model.train().decode_head(model.extract_feat(pixels))
        masks = F.interpolate(masks[-1], (SIDE, SIDE), mode='bilinear').sigmoid()
        expected = torch.einsum('bqhw,bqk->bkhw', masks, classes[-1].softmax(-1)[..., :-1])
        expected = F.interpolate(expected, SHAPES[4], mode='bilinear')[0]
    assert relative_error(masked, expected) < 1e-5
    assert relative_error(masked, plain) > 1e-2


def test_evaluation_with_masks_does_not_change_what_a_run_draws_later(small_config):
    """The run's random numbers are those of a run that evaluates without."""
    ends = {}
    for masked in (False, True):
        config = small_config(True, 4, f'masked_{masked}', **{'train_cfg.val_interval': 2})
        config.model.test_cfg.masked_attention = masked
        runner = Runner.from_cfg(config)
        runner.train()
        ends[masked] = runner.model.state_dict()
    assert all(torch.equal(value, ends[True][name]) for name, value in ends[False].items())


def test_a_graph_with_masks_is_refused(model):
    model.test_cfg.masked_attention = True
    with pytest.raises(ValueError, match='masked_attention: set it to False'):
        ImageToScores(model)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(mode='evenly'), "test_cfg.mode is one of slide_evenly, slide, whole, got 'evenly'"),
        (dict(crop_size=512), r'needs crop_size=\(rows, columns\), two numbers of pixels, got 512'),
        (dict(crop_size=(64, 0)), r'needs crop_size=\(rows, columns\)'),
        (dict(crop_size=None), r'needs crop_size=\(rows, columns\)'),
    ],
)
def test_a_test_mode_that_is_none_is_refused_when_the_model_is_built(tmp_path, changes, message):
    config = ade20k_config(tmp_path)
    config.model.test_cfg.update(changes)
    with pytest.raises(ValueError, match=message):
        MODELS.build(config.model)


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_evaluates_as_published(name):
    config = Config.fromfile(ROOT / 'configs' / name)
    assert (config.model.type, config.model.test_cfg.mode) == ('EoMTSegmentor', 'slide_evenly')
    assert 'masked_attention' not in config.model.test_cfg
    for loader in (config.val_dataloader, config.test_dataloader):
        (resize,) = (step for step in loader.dataset.pipeline if 'Resize' in step.type)
        assert resize == dict(type='EoMTResize', size=config.crop_size)
        assert tuple(share_vit(config.model)['test_cfg'].crop_size) == tuple(config.crop_size)
    sizes = [step['size'] for step in config.tta_pipeline[1].transforms[0]]
    assert sizes[1] == config.crop_size[0] and sizes == sorted(sizes)


def test_the_recipe_page_shows_what_the_ade20k_config_has():
    (block,) = (block for block in blocks('recipe.md') if 'EoMTResize' in block)
    shown: dict = {}
    exec(block, shown)
    config = Config.fromfile(ROOT / 'configs' / 'eomt_ade20k_512.py')
    assert config.test_dataloader.dataset.pipeline == shown['test_pipeline']
    assert config.model.type == shown['model']['type'] and share_vit(config.model)['test_cfg'] == shown['model']['test_cfg']


def test_configs_on_the_toolboxs_data_keep_the_toolboxs_windows():
    for path in (ROOT / 'configs' / 'datasets').glob('*.py'):
        assert Config.fromfile(path).model.test_cfg.mode == 'slide'


def test_a_small_config_evaluates_two_windows_as_before(scenes, tmp_path):
    """Images of 2:1, such as Cityscapes', have the same windows in both modes."""
    config = make_config(scenes, tmp_path)
    model = init_model(config, device='cpu')
    image = str(next(scenes.glob('leftImg8bit/val/*/*.png')))
    scores = []
    for mode in ('slide_evenly', 'slide'):
        model.test_cfg.mode = mode
        scores.append(inference_model(model, image).seg_logits.data)
    assert torch.equal(*scores)
