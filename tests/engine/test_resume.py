"""Stopped, killed and resumed runs go on as if nothing had happened, or say why not."""

import logging
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, merged, run_tool
from mmengine.hooks import Hook
from mmengine.runner import Runner, loops
from mmseg.apis import init_model

from mmseg_eomt.engine.resume import last_whole_checkpoint


def losses(runner: Runner) -> list[float]:
    return [float(value) for value in runner.message_hub.get_scalar('train/loss').data[0]]


@pytest.mark.parametrize('save', ['trainable', 'full'])
def test_a_resumed_run_is_the_run_that_was_never_stopped(small_config, base, save):
    if hasattr(loops._InfiniteDataloaderIterator, 'skip_iter'):
        pytest.skip('onedl-mmengine skips the data that was trained on without drawing its augmentations')
    changes = {
        'custom_hooks.0.save': save,
        'custom_hooks.0.lora_dropout': 0.1,
        'default_hooks.checkpoint.interval': 2,
        'train_cfg.val_interval': 2,  # evaluation between the two halves draws no random numbers of the training's
    }
    whole = Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=4, name='whole', **changes))
    whole.train()
    # the same schedule, stopped after two of its four iterations
    stopped = Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=4, name='stopped', **changes))
    stopped.register_hook(_Stop(), priority='LOWEST')
    with pytest.raises(KeyboardInterrupt):
        stopped.train()

    resumed = Runner.from_cfg(small_config(lora=True, load_from=base, resume=True, max_iters=4, name='stopped', **changes))
    resumed.train()

    assert losses(resumed)[-4:] == pytest.approx(losses(whole)[-4:], rel=1e-5)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters()):
        assert torch.allclose(one, other, rtol=0, atol=1e-5), name


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_last_whole_one(small_config, config_file, base):
    changes = {'default_hooks.checkpoint.interval': 2}
    config = small_config(lora=True, load_from=base, max_iters=6, **changes)
    config.custom_imports['imports'].append('killed_while_saving')
    config.custom_hooks.append(dict(type='KilledWhileSaving', at_iter=4))
    file = config_file(config)
    done = run_tool('tools/train.py', file, check=False, PYTHONPATH=f'{ROOT}:{ROOT / "tests"}')
    assert done.returncode == -signal.SIGKILL
    half = Path(config.work_dir) / 'iter_4.pth'
    assert 0 < half.stat().st_size < (Path(config.work_dir) / 'iter_2.pth').stat().st_size
    with pytest.raises(ValueError, match=r'iter_4.pth .* is no whole checkpoint'):
        Runner.from_cfg(small_config(lora=True, load_from=str(half))).test()

    (Path(config.work_dir) / 'last_checkpoint').write_text(str(half))  # as if it had been killed a moment later
    config_file(small_config(lora=True, load_from=base, max_iters=6, **changes))
    log = run_tool('tools/train.py', file, '--resume').stdout
    assert 'iter_4.pth is no whole checkpoint' in log
    assert 'resumed epoch: 0, iter: 2' in log
    assert 'Iter(train) [6/6]' in log


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'custom_hooks.0.r': 8}, 'other adapters .*r: 16, here 8'),
        ({'custom_hooks.0.lora_alpha': 8}, 'lora_alpha: 32, here 8'),
        ({'custom_hooks.0.peft': dict(use_dora=True)}, 'use_dora: False, here True'),
        ({'custom_hooks.0.peft': dict(type='LoHaConfig')}, 'peft_type'),
        ({'custom_hooks.0.target_modules': ['qkv']}, 'has 8 weights that the model has not, such as .*proj.lora_A'),
        ({'custom_hooks.0.target_modules': ['qkv', 'proj', 'fc1']}, r'lacks 8 of the \d+ weights .*fc1.lora_A'),
        ({'custom_hooks.0.trainable_modules': ['decode_head']}, r'lacks \d+ of the \d+ weights'),
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


def test_an_adapter_folder_is_nothing_to_resume(small_config, lora):
    folder = str(Path(lora).parent / 'adapters' / 'iter_2')
    with pytest.raises(ValueError, match='holds no optimizer to resume'):
        Runner.from_cfg(small_config(lora=True, load_from=folder, resume=True)).train()


def test_a_checkpoint_without_an_optimizer_is_nothing_to_resume(small_config, base, lora):
    """Such as the one of save_best: learning rate and moments would start anew without a word."""
    changes = {'default_hooks.checkpoint.save_best': 'mIoU', 'load_from': base, 'max_iters': 1}
    runner = Runner.from_cfg(small_config(lora=True, **changes))
    runner.train()
    (best,) = Path(runner.work_dir).glob('best_*.pth')
    with pytest.raises(ValueError, match=r'best_mIoU_iter_1.pth holds no optimizer to resume'):
        Runner.from_cfg(small_config(lora=True, load_from=str(best), resume=True, name='second')).train()


def test_the_last_checkpoint_is_the_one_that_the_run_has_named(small_config, lora, tmp_path):
    """Whatever the files' times are, which a copy of the folder changes."""
    for number in (2, 4, 6):
        shutil.copy(lora, tmp_path / f'iter_{number}.pth')
    runner = SimpleNamespace(work_dir=str(tmp_path), logger=logging.getLogger())
    assert last_whole_checkpoint(runner).name == 'iter_6.pth'
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/iter_4.pth')
    (tmp_path / 'iter_2.pth').touch()
    assert last_whole_checkpoint(runner).name == 'iter_4.pth'
    (tmp_path / 'iter_4.pth').write_bytes(b'PK')
    assert last_whole_checkpoint(runner).name == 'iter_2.pth'


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


class _Stop(Hook):
    """Ends a run as Ctrl-C does, after its second iteration."""

    def after_train_iter(self, runner: Runner, *_, **__) -> None:
        if runner.iter == 1:
            raise KeyboardInterrupt
