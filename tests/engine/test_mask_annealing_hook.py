"""The published schedule, and a resumed run that goes on where it stopped."""

import json

import pytest
from conftest import DATA
from mmengine.runner import Runner

from mmseg_eomt.engine.schedules import MaskAnnealingHook
from mmseg_eomt.models.eomt_head import EoMTHead


class RunnerOfLength:
    """What MaskAnnealingHook reads of a Runner before training: 20,000 real steps are out of reach of a test."""

    iter = 0

    def __init__(self, head: EoMTHead, max_iters: int) -> None:
        self.model = head
        self.max_iters = max_iters


def head(num_joint_blocks: int) -> EoMTHead:
    return EoMTHead(3, dict(embed_dims=8, num_layers=6, num_heads=1), num_joint_blocks=num_joint_blocks)


def test_probabilities_equal_the_public_implementations():
    schedule = json.loads((DATA / 'schedule_llrd08.json').read_text())
    hook = MaskAnnealingHook(schedule['start_steps'], schedule['end_steps'], schedule['hyper']['poly_power'])
    hook.before_train(RunnerOfLength(head(4), schedule['total_steps']))
    for step, expected in schedule['mask_prob'].items():
        assert hook.mask_probs(int(step)) == pytest.approx(expected, abs=1e-6), step


def test_the_default_is_the_published_fractions_of_the_run():
    hook = MaskAnnealingHook()
    hook.before_train(RunnerOfLength(head(4), 19902))  # 107 epochs of Cityscapes in batches of 16
    assert hook._spans == [(3317, 6634), (6634, 9951), (9951, 13268), (13268, 16585)]


def test_it_is_set_in_training_logged_and_restored_by_resuming(small_config):
    config = small_config(max_iters=4, name='whole')
    runner = Runner.from_cfg(config)
    runner.train()
    logged = runner.message_hub.get_scalar('train/mask_prob_0').data[0]
    assert list(logged) == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9])
    assert runner.model.decode_head.mask_probs == pytest.approx((0.25**0.9, 1.0))

    config = small_config(max_iters=6, name='whole', resume=True)
    config.custom_hooks[0].update(start_iters=[0, 4], end_iters=[4, 8])
    resumed = Runner.from_cfg(config)
    resumed.train()
    assert resumed.iter == 6
    assert list(resumed.message_hub.get_scalar('train/mask_prob_1').data[0])[-2:] == pytest.approx([1, 0.75**0.9])
    assert resumed.model.decode_head.mask_probs == pytest.approx((0.0, 0.75**0.9))


@pytest.mark.parametrize('end_iters', [[1, 2], [2, 1]])
def test_a_run_that_ends_before_the_masks_are_annealed_is_warned_of(small_config, capfd, end_iters):
    config = small_config(max_iters=1)
    config.custom_hooks[0].update(start_iters=[0, 0], end_iters=end_iters)
    Runner.from_cfg(config).train()
    assert 'ends at iteration 1 with masked attention still on (end_iters 2)' in ''.join(capfd.readouterr())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(start_iters=[1]), 'go together'),
        (dict(start_iters=[5], end_iters=[5]), 'must follow its start'),
        (dict(start_iters=[1, 2], end_iters=[2]), 'must follow its start'),
        (dict(start_iters=[0.5], end_iters=[1e4]), r'from 0 to 1, and an iteration a whole number; got 10000'),
    ],
)
def test_spans_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskAnnealingHook(**arguments)


def test_a_model_without_the_head_or_another_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match='one EoMTHead or PMTHead, found 0'):
        MaskAnnealingHook().before_train(RunnerOfLength(head(2).norm, 10))
    with pytest.raises(ValueError, match='2 blocks need as many start_iters, got 1'):
        MaskAnnealingHook([1], [2]).before_train(RunnerOfLength(head(2), 10))
