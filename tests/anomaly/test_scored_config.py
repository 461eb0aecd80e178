"""A config whose model predicts scores of queries: the same weights, the same classes, more maps."""

import copy

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.segmentor import anomaly_maps

IMAGE = torch.randint(0, 256, (64, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()


def test_the_checkpoint_of_a_plain_model_gives_scores_of_queries_and_the_same_classes(small_config, base):
    config = small_config()
    given = copy.deepcopy(config.to_dict())
    scored = with_anomaly_scores(config, ['rba', 'eam', 'void', 'rba@0.5'])
    assert config.to_dict() == given
    plain, other = (inference_model(init_model(c, base, device='cpu'), IMAGE) for c in (config, scored))
    assert torch.equal(plain.seg_logits.data, other.seg_logits.data)
    assert torch.equal(plain.pred_sem_seg.data, other.pred_sem_seg.data)
    maps = anomaly_maps(other, ['rba', 'eam', 'void', 'rba@0.5'])
    assert maps.shape == (4, 64, 128)
    assert not torch.equal(maps[0], maps[3])


def test_scores_of_classes_change_no_model(small_config):
    config = small_config()
    assert with_anomaly_scores(config, ['rba', 'max']).to_dict() == config.to_dict()
    asked = small_config(**{'model.decode_head.type': 'EoMTAnomalyHead', 'model.decode_head.anomaly_scores': ['eam']})
    assert with_anomaly_scores(asked, ['rba']).model.decode_head.anomaly_scores == []


def test_a_wrapped_model_is_changed_inside(small_config):
    config = small_config()
    config.model = dict(type='SegTTAModel', module=config.model)
    scored = with_anomaly_scores(config, ['eam'])
    assert scored.model.type == 'SegTTAModel'
    assert scored.model.module.type == 'EoMTAnomalySegmentor'
    assert scored.model.module.decode_head.anomaly_scores == ['eam']


def test_scores_of_queries_are_refused_for_a_model_without_queries():
    config = Config(dict(model=dict(type='EncoderDecoder', decode_head=dict(type='FCNHead', num_classes=19))))
    assert with_anomaly_scores(config, ['max']).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match='eam, max@2 need the queries of an EoMT, and the decode head is FCNHead'):
        with_anomaly_scores(config, ['eam', 'max', 'max@2'])
    with pytest.raises(ValueError, match='An anomaly score is one of'):
        with_anomaly_scores(Config.fromfile(ROOT / 'configs/eomt_tiny_cityscapes.py'), ['msp2'])
