"""Anomaly scores that ride along with a prediction, and targets without outliers."""

import pytest
import torch
from conftest import SMALL_ARCH
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from mmseg_eomt.anomaly.scores import NAMES, OF_CLASSES
from mmseg_eomt.anomaly.segmentor import anomaly_maps

K, SIDE = 5, 32
EVERY = [*NAMES, 'rba@0.5', 'entropy@2', 'eam@0.5', 'void@2']


@pytest.fixture(autouse=True)
def toolbox() -> None:
    register_all_modules()


def model_config(mode: str = 'slide_evenly', **head: object) -> dict:
    anomaly = bool(head)
    return dict(
        type='EoMTAnomalySegmentor' if anomaly else 'EoMTSegmentor',
        vit=dict(arch=SMALL_ARCH, patch_size=8, num_joint_blocks=2, img_size=(SIDE, SIDE)),
        data_preprocessor=dict(type='SegDataPreProcessor', pad_val=0, seg_pad_val=255),
        backbone=dict(type='EoMTViT'),
        decode_head=dict(
            type='EoMTAnomalyHead' if anomaly else 'EoMTHead', num_classes=K, num_queries=9, num_points=64, **head
        ),
        test_cfg=ConfigDict(mode=mode),
    )


def build(mode: str = 'slide_evenly', **head: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(model_config(mode, **head))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def alike(mode: str = 'slide_evenly', **head: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A stock model, and one for anomalies with the same weights."""
    stock, ours = build(mode), build(mode, **head)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def sample(flip: bool = False, ori_shape: tuple[int, int] = (40, 72)) -> SegDataSample:
    meta = dict(img_shape=(SIDE, 60), ori_shape=ori_shape, pad_shape=(SIDE, 60), flip=flip, flip_direction='horizontal')
    return SegDataSample(metainfo=meta)


@torch.no_grad()
def predict(model: torch.nn.Module, flip: bool = False) -> SegDataSample:
    image = torch.rand(1, 3, SIDE, 60, generator=torch.Generator().manual_seed(1))
    return model.predict(image.flip(3) if flip else image, [sample(flip)])[0]


@pytest.mark.parametrize('mode', ['whole', 'slide_evenly', 'slide'])
def test_what_is_predicted_without_scores_stays_bit_for_bit(mode, monkeypatch):
    for head in (dict(anomaly_scores=()), dict(anomaly_scores=EVERY)):
        stock, ours = alike(mode, **head)
        for model in (stock, ours):
            model.test_cfg.setdefault('crop_size', (SIDE, SIDE))
            model.test_cfg.setdefault('stride', (SIDE, SIDE // 2))
        expected, given = predict(stock), predict(ours)
        assert torch.equal(given.pred_sem_seg.data, expected.pred_sem_seg.data)
        if head['anomaly_scores']:
            assert torch.allclose(given.seg_logits.data, expected.seg_logits.data, atol=1e-6)
        else:
            assert torch.equal(given.seg_logits.data, expected.seg_logits.data)
            assert 'anomaly_scores' not in given


def test_scores_of_classes_need_no_other_model():
    stock, ours = alike(anomaly_scores=EVERY)
    given, expected = anomaly_maps(predict(ours), list(OF_CLASSES)), anomaly_maps(predict(stock), list(OF_CLASSES))
    assert given.shape == (len(OF_CLASSES), 40, 72)
    assert torch.allclose(given, expected, atol=1e-6)


def test_scores_of_queries_are_those_of_their_formulas():
    model = build('whole', anomaly_scores=EVERY)
    image = torch.rand(1, 3, SIDE, 60)
    given = model.predict(image, [sample(ori_shape=(SIDE, 60))])[0]
    masks, classes = (layers[-1][0] for layers in model.decode_head(model.extract_feat(image)))
    m = torch.nn.functional.interpolate(masks[None], (SIDE, 64), mode='bilinear')[0, :, :, :60].sigmoid()

    def of(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum('q,qhw->hw', weights, m)

    for name, temperature in (('eam', 1), ('eam@0.5', 0.5)):
        p = (classes / temperature).softmax(-1)
        assert torch.allclose(anomaly_maps(given, [name])[0], 1 - of(p[:, :K].amax(-1)), atol=1e-5)
    for name, temperature in (('void', 1), ('void@2', 2)):
        p = (classes / temperature).softmax(-1)
        assert torch.allclose(anomaly_maps(given, [name])[0], of(p[:, K]) / m.sum(0), atol=1e-5)
    warm = torch.einsum('qk,qhw->khw', (classes / 0.5).softmax(-1)[:, :K], m)
    assert torch.allclose(anomaly_maps(given, ['rba@0.5'])[0], -warm.tanh().sum(0), atol=1e-5)


def test_a_flipped_image_gives_the_same_scores_once_turned_back():
    model = build(anomaly_scores=EVERY)
    model.backbone.pos_embed.data.zero_()
    model.test_cfg.mode = 'whole'
    plain, flipped = predict(model), predict(model, flip=True)
    there = model.predict(torch.rand(1, 3, SIDE, 60, generator=torch.Generator().manual_seed(1)).flip(3), [sample()])[0]
    assert torch.allclose(flipped.anomaly_scores.data, there.anomaly_scores.data.flip(-1), atol=1e-5)
    assert plain.anomaly_scores.data.shape == flipped.anomaly_scores.data.shape == (len(EVERY), 40, 72)


def test_a_score_that_the_model_was_not_asked_for_is_refused():
    given = predict(build(anomaly_scores=['rba']))
    with pytest.raises(ValueError, match=r"'eam' needs the queries.*anomaly_scores=\['eam', …\]"):
        anomaly_maps(given, ['rba', 'eam'])
    with pytest.raises(ValueError, match="got 'rbaa'"):
        build(anomaly_scores=['rbaa'])


@pytest.mark.parametrize('name', ['msp', 'entropy'])
def test_shares_of_logits_are_refused(name):
    logits = torch.randn(K, 4, 4, generator=torch.Generator().manual_seed(0))
    assert anomaly_maps(dict(seg_logits=dict(data=logits)), ['max', 'energy']).isfinite().all()
    with pytest.raises(ValueError, match=f"'{name}' is of class scores from 0 on, .* ask for rba, rba_sum, max, energy"):
        anomaly_maps(dict(seg_logits=dict(data=logits)), [name])


def losses_of(model: torch.nn.Module, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    data = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=dict(seg_map_path='mask.png'))
    torch.manual_seed(3)
    return model.train().loss(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), [data])


def test_outliers_are_ignored_in_the_targets_of_masks_and_classes():
    stock, ours = alike(anomaly_scores=['eam'])
    labels = torch.randint(0, K, (1, SIDE, SIDE))
    with_outlier, ignored = labels.clone(), labels.clone()
    with_outlier[:, :10, :10], ignored[:, :10, :10] = 254, 255
    given, expected = losses_of(ours, with_outlier), losses_of(stock, ignored)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r'neither below num_classes=5.*mask\.png'):
        losses_of(ours, labels + 200)
    assert not ours.decode_head.is_no_class(labels + 200).any()
    assert ours.decode_head.is_no_class(with_outlier).any()


def test_an_outlier_index_that_means_something_else_is_refused():
    with pytest.raises(ValueError, match='outlier_index must be no class'):
        build(outlier_index=3)
    with pytest.raises(ValueError, match='exclude each other'):
        build(cosine_head=dict(), negative_class=True)
