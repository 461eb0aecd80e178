"""Test-time augmentation of class scores and anomaly scores."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.segmentor import FIELD, anomaly_maps
from mmseg_eomt.anomaly.tta import EoMTAnomalyTTAModel

NAMES = ['rba', 'eam', 'rba@0.5']
FLIPS = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]


@pytest.fixture
def config(small_config, base) -> Config:
    return with_anomaly_scores(small_config(load_from=base), NAMES)


def load(model: torch.nn.Module, checkpoint: str) -> torch.nn.Module:
    load_checkpoint(model.module if hasattr(model, 'module') else model, checkpoint, map_location='cpu')
    return model.eval()


def batch(config: Config, flips: list[dict]) -> dict:
    """The first validation image, under some flips if there are any."""
    dataset = config.test_dataloader.dataset.copy()
    if flips:
        read, resize, labels, pack = config.test_pipeline
        dataset.pipeline = [read, dict(type='TestTimeAug', transforms=[[resize], flips, [labels], [pack]])]
    return pseudo_collate([DATASETS.build(dataset)[0]])


@torch.no_grad()
def predict(config: Config, checkpoint: str, flips: list[dict]) -> SegDataSample:
    """Of this image; without flips, by the model alone."""
    settings = dict(type='EoMTAnomalyTTAModel', module=config.model) if flips else config.model
    return load(MODELS.build(settings), checkpoint).test_step(batch(config, flips))[0]


def test_one_augmentation_that_changes_nothing_is_the_model_itself(config, base):
    alone, merged = predict(config, base, []), predict(config, base, FLIPS[:1])
    for field in ('seg_logits', 'pred_sem_seg', 'gt_sem_seg', FIELD):
        assert torch.equal(alone.get(field).data, merged.get(field).data), field
    assert torch.equal(anomaly_maps(alone, NAMES), anomaly_maps(merged, NAMES))
    assert merged.img_path == alone.img_path


def test_flips_are_mapped_back_and_averaged(config, base):
    plain, flipped, both = predict(config, base, FLIPS[:1]), predict(config, base, FLIPS[1:]), predict(config, base, FLIPS)
    mirrored = batch(config, [])
    mirrored['inputs'][0] = mirrored['inputs'][0].flip(-1)
    with torch.no_grad():
        (of_mirrored,) = load(MODELS.build(config.model), base).test_step(mirrored)
    for field in ('seg_logits', FIELD):
        given = [sample.get(field).data for sample in (plain, flipped)]
        assert not torch.equal(*given)
        torch.testing.assert_close(given[1], of_mirrored.get(field).data.flip(-1))
        torch.testing.assert_close(both.get(field).data, (given[0] + given[1]) / 2)
    assert torch.equal(both.pred_sem_seg.data[0], both.seg_logits.data.argmax(0))
    assert torch.equal(both.gt_sem_seg.data, plain.gt_sem_seg.data)


def test_labels_are_those_of_the_sample_that_is_not_flipped(config):
    samples = []
    for flip in (True, False):
        sample = SegDataSample(metainfo=dict(flip=flip, img_path='a.png'))
        sample.seg_logits = PixelData(data=torch.zeros(2, 1, 2))
        sample.gt_sem_seg = PixelData(data=torch.tensor([[[1, 0]]]).flip(-1) if flip else torch.tensor([[[1, 0]]]))
        samples.append(sample)
    (merged,) = EoMTAnomalyTTAModel(config.model).merge_preds([samples])
    assert merged.gt_sem_seg.data.tolist() == [[[1, 0]]]
    assert FIELD not in merged


def test_a_runner_tests_with_it_by_the_toolboxs_own_settings(config):
    config.tta_model = dict(type='EoMTAnomalyTTAModel', module=config.model)
    config.model = config.tta_model
    read, resize, labels, pack = config.test_pipeline
    steps = [[resize], FLIPS, [labels], [pack]]
    config.test_dataloader.dataset.pipeline = [read, dict(type='TestTimeAug', transforms=steps)]
    assert 0 <= Runner.from_cfg(config).test()['mIoU'] <= 100
