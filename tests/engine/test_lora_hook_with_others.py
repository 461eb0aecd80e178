"""What does not go together with LoRAHook, or within it, is refused in one sentence."""

import pytest
import torch
from mmengine.runner import Runner

from mmseg_eomt.engine import LoRAHook

LORA, EMA = dict(type='LoRAHook'), dict(type='EMAHook', momentum=0.5)


@pytest.mark.parametrize(
    ('hooks', 'message'),
    [
        ([LORA, LORA], 'custom_hooks has more than one LoRAHook'),
        ([dict(LORA, priority='LOW'), EMA], 'EMAHook comes before LoRAHook'),
        ([dict(EMA, priority='VERY_HIGH'), LORA], 'EMAHook comes before LoRAHook'),
    ],
)
@pytest.mark.parametrize('mode', ['train', 'test'])
def test_hooks_that_do_not_go_together(small_config, base, lora, hooks, message, mode):
    config = small_config(load_from=base if mode == 'train' else lora, custom_hooks=hooks)
    with pytest.raises(ValueError, match=message):
        getattr(Runner.from_cfg(config), mode)()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(r=4, peft=dict(r=8)), r'r=4 and peft=dict\(r=8\): give one of the two'),
        (dict(lora_alpha=4, peft=dict(lora_alpha=8)), r'lora_alpha=4 and peft=dict\(lora_alpha=8\)'),
        (dict(target_modules=['qkv'], peft=dict(target_modules=['proj'])), 'target_modules'),
        (dict(trainable_modules='decode_head'), "trainable_modules is a list of names, got 'decode_head'"),
        (dict(target_modules='qkv'), "target_modules is a list of names, got 'qkv'"),
        (dict(exclude_modules='proj'), "exclude_modules is a list of names, got 'proj'"),
    ],
)
def test_arguments_that_contradict_each_other_or_are_no_lists(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoRAHook(**arguments)


def test_a_published_checkpoint_needs_the_note_of_its_adapters(small_config, base, tmp_path):
    changes = dict(lora=True, load_from=base, max_iters=1)
    with pytest.raises(ValueError, match=r"published_keys=\['state_dict'\] lacks 'meta'"):
        Runner.from_cfg(small_config(**changes, **{'default_hooks.checkpoint.published_keys': ['state_dict']})).train()

    keys = ['meta', 'state_dict']
    runner = Runner.from_cfg(small_config(**changes, **{'default_hooks.checkpoint.published_keys': keys}))
    runner.train()
    (published,) = (tmp_path / 'run').glob('iter_1-*.pth')
    assert torch.load(published, weights_only=True).keys() == set(keys)
    assert Runner.from_cfg(small_config(lora=True, load_from=str(published), name='test')).test()['mIoU'] >= 0
