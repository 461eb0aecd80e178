"""A LoRA run that goes on, or starts from adapters, finds the adapters and the base that it needs, or says why not."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import merged
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.apis import init_model


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'custom_hooks.0.r': 8}, 'other adapters .*r: 16, here 8'),
        ({'custom_hooks.0.lora_alpha': 8}, 'lora_alpha: 32, here 8'),
        ({'custom_hooks.0.peft': dict(use_dora=True)}, 'use_dora: False, here True'),
        ({'custom_hooks.0.peft': dict(type='LoHaConfig')}, 'peft_type'),
        ({'custom_hooks.0.target_modules': ['qkv']}, r'8 not in the model(.|\n)*proj.lora_A'),
        ({'custom_hooks.0.target_modules': ['qkv', 'proj', 'fc1']}, r'8 missing(.|\n)*fc1.lora_A'),
        ({'custom_hooks.0.trainable_modules': ['decode_head']}, r'\d+ missing'),
    ],
)
@pytest.mark.parametrize('resume', [True, False], ids=['resume', 'load_from'])
def test_other_adapters_are_refused_with_what_differs(small_config, base, lora, tmp_path, change, message, resume):
    if change.get('custom_hooks.0.peft', {}).get('type'):
        change = {**change, 'custom_hooks.0.r': None, 'custom_hooks.0.lora_alpha': None, 'custom_hooks.0.lora_dropout': None}
    if resume:
        (tmp_path / 'run').mkdir()
        shutil.copy(lora, tmp_path / 'run')
    where = dict(load_from=base, resume=True) if resume else dict(load_from=lora)
    with pytest.raises((ValueError, RuntimeError), match=message):
        Runner.from_cfg(small_config(lora=True, max_iters=2, **where, **change)).train()


@pytest.fixture
def own_lora(small_config, base, tmp_path) -> str:
    """Adapters on a copy of the base that a test may change; the copy is ``base.pth``."""
    shutil.copy(base, tmp_path / 'base.pth')
    config = small_config(lora=True, load_from=str(tmp_path / 'base.pth'), max_iters=1, name='lora')
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    Runner.from_cfg(config).train()
    return str(tmp_path / 'lora' / 'iter_1.pth')


def test_another_base_is_refused_with_what_differs(small_config, own_lora, tmp_path):
    changed = torch.load(tmp_path / 'base.pth', weights_only=True)
    changed['state_dict']['backbone.blocks.0.mlp.fc1.weight'] += 0.1
    torch.save(changed, tmp_path / 'base.pth')
    for mode, options in (('train', dict(resume=True, name='lora')), ('test', {})):
        runner = Runner.from_cfg(small_config(lora=True, load_from=own_lora, max_iters=2, **options))
        with pytest.raises(ValueError, match=r'trained on another base: 1 of \d+ .*blocks.0.mlp.fc1.weight.*base.pth'):
            getattr(runner, mode)()


def test_a_base_that_has_moved_is_named_and_can_be_given(small_config, own_lora, tmp_path):
    (tmp_path / 'base.pth').rename(tmp_path / 'moved.pth')
    with pytest.raises(FileNotFoundError, match=r'base.pth is not there. It is the base .*model.init_cfg'):
        Runner.from_cfg(small_config(lora=True, load_from=own_lora)).test()
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'moved.pth'))
    runner = Runner.from_cfg(small_config(lora=True, load_from=own_lora, **{'model.init_cfg': init_cfg}))
    assert runner.test()['mIoU'] >= 0


@pytest.mark.parametrize('source', ['checkpoint', 'folder'])
def test_a_new_run_starts_from_adapters(small_config, base, lora, source):
    first = torch.load(lora, weights_only=True)['state_dict']
    start = {}
    where = lora if source == 'checkpoint' else str(Path(lora).parent / 'adapters' / 'iter_2')
    runner = Runner.from_cfg(small_config(lora=True, load_from=where, max_iters=1, name='second'))
    runner.register_hook(_Look(start), priority='LOWEST')
    runner.train()
    assert runner.iter == 1
    trained = [name for name in first if '.lora_' in name or 'class_head' in name or 'query_embed' in name]
    assert len(trained) == 2 * 8 + 3
    assert all(torch.equal(start[name], first[name]) for name in trained)
    second = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)
    assert second['meta']['adapter']['base']['load_from'] == base  # not the adapters it started from


def test_an_adapter_of_pefts_without_a_head_starts_from_the_bases_head(small_config, base, tmp_path):
    import peft

    plain = init_model(small_config(), base, device='cpu')
    fields = dict(r=16, lora_alpha=32, target_modules=['qkv', 'proj'], exclude_modules=['patch_embed.proj'])
    peft.get_peft_model(plain, peft.LoraConfig(**fields, init_lora_weights=False)).save_pretrained(tmp_path / 'theirs')
    start = {}
    changes = {'model.init_cfg': dict(type='Pretrained', checkpoint=base)}
    runner = Runner.from_cfg(small_config(lora=True, load_from=str(tmp_path / 'theirs'), max_iters=1, **changes))
    runner.register_hook(_Look(start), priority='LOWEST')
    runner.train()
    weights = torch.load(base, weights_only=True)['state_dict']
    assert torch.equal(start['decode_head.class_head.weight'], weights['decode_head.class_head.weight'])
    name = 'backbone.blocks.0.attn.qkv.lora_B.default.weight'
    assert torch.equal(start[name], plain.get_parameter(name)) and start[name].abs().max() > 0


def test_a_new_run_from_a_full_checkpoint_finds_the_base_in_it(small_config, base, tmp_path):
    shutil.copy(base, tmp_path / 'base.pth')
    options = dict(lora=True, max_iters=1)
    first = small_config(load_from=str(tmp_path / 'base.pth'), name='full', **options, **{'custom_hooks.0.save': 'full'})
    Runner.from_cfg(first).train()
    (tmp_path / 'base.pth').unlink()
    full = str(tmp_path / 'full' / 'iter_1.pth')
    runner = Runner.from_cfg(small_config(load_from=full, name='slim', **options))
    runner.train()
    slim = torch.load(tmp_path / 'slim' / 'iter_1.pth', weights_only=True)
    assert slim['meta']['adapter']['base']['load_from'] == full
    assert not [name for name in slim['state_dict'] if 'mlp' in name]
    tester = Runner.from_cfg(small_config(lora=True, load_from=str(tmp_path / 'slim' / 'iter_1.pth'), name='test'))
    tester.test()
    expected = merged(runner.model)
    assert all(torch.equal(value, expected[name]) for name, value in tester.model.state_dict().items())


def test_a_checkpoint_without_an_optimizer_is_nothing_to_resume(small_config, base):
    """Learning rate and moments would start anew silently."""
    changes = {'default_hooks.checkpoint.save_optimizer': False, 'load_from': base}
    Runner.from_cfg(small_config(lora=True, max_iters=1, **changes)).train()
    with pytest.raises(ValueError, match=r'iter_1.pth holds no optimizer to resume'):
        Runner.from_cfg(small_config(lora=True, max_iters=2, resume=True, **changes)).train()


def test_another_precision_of_the_base_is_refused_when_resuming(small_config, base, lora, tmp_path):
    (tmp_path / 'run').mkdir()
    shutil.copy(lora, tmp_path / 'run')
    config = small_config(lora=True, load_from=base, resume=True, **{'custom_hooks.0.base_precision': 'bf16'})
    with pytest.raises(ValueError, match="base_precision='fp32', here it is 'bf16'"):
        Runner.from_cfg(config).train()


def test_a_full_run_resumes_without_the_file_it_started_from(small_config, base, tmp_path):
    shutil.copy(base, tmp_path / 'base.pth')
    options = {'custom_hooks.0.save': 'full', 'load_from': str(tmp_path / 'base.pth')}
    Runner.from_cfg(small_config(lora=True, max_iters=1, **options)).train()
    (tmp_path / 'base.pth').unlink()
    runner = Runner.from_cfg(small_config(lora=True, max_iters=2, resume=True, **options))
    runner.train()
    assert runner.iter == 2


class _Look(Hook):
    """Copies the weights when training starts."""

    def __init__(self, start: dict) -> None:
        self.start = start

    def before_train(self, runner: Runner) -> None:
        self.start.update({name: value.clone() for name, value in runner.model.state_dict().items()})
