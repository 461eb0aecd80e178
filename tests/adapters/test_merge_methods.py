"""Several adapters merged by PEFT's TIES, DARE and pruning, on the changes of the weights."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner
from peft import PeftModel
from peft.utils import merge_utils
from torch import nn

from mmseg_eomt.adapters import inject, load_adapter, lora_config, merge, save_adapter
from mmseg_eomt.commands.adapter import main

FACTORS, DENSITY = dict(dusk=0.9, night=0.4), 0.5
METHODS = ['ties', 'dare_linear', 'dare_ties', 'magnitude_prune']


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 6), nn.Linear(6, 3)).eval()


@pytest.fixture(params=[[], ['3']], ids=['adapters alone', 'with a trained module'])
def folders(request, tmp_path) -> dict[str, Path]:
    """Two adapters, of which one has a layer more than the other."""
    for seed, (name, targets) in enumerate(dict(dusk=['0', '2'], night=['0']).items()):
        model = small()
        inject(model, lora_config(4, 8, 0.0, targets), request.param)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
        save_adapter(model, tmp_path / name)
    return {name: tmp_path / name for name in FACTORS}


def loaded(folders: dict[str, Path]) -> nn.Module:
    model = small()
    for name, folder in folders.items():
        load_adapter(model, folder, name)
    return model


def merged(folders: dict[str, Path], *args, **kwargs) -> dict[str, torch.Tensor]:
    model = loaded(folders)
    merge(model, *args, **kwargs)
    return model.state_dict()


@pytest.mark.parametrize('method', METHODS)
def test_a_method_is_pefts_function_on_the_changes_of_each_weight(folders, method):
    base = small().state_dict()
    alone = {name: merged({name: folder}, {name: 1.0}) for name, folder in folders.items()}
    mixed = merged(folders, FACTORS, method=method, density=DENSITY, seed=3)

    torch.manual_seed(3)
    for key, value in mixed.items():  # in the model's order, as DARE draws
        changes = {name: weights[key] - base[key] for name, weights in alone.items()}
        if not any(change.any() for change in changes.values()):
            assert torch.equal(value, base[key])
            continue
        used = {name: change for name, change in changes.items() if change.any()}  # in whose layers an adapter is
        factors = torch.tensor([FACTORS[name] for name in used])
        combined = getattr(merge_utils, method)([*used.values()], factors, DENSITY)
        assert torch.allclose(value, base[key] + combined, atol=1e-6), key


@pytest.mark.parametrize(
    ('method', 'theirs'), [('linear', 'cat'), ('ties', 'ties_svd'), ('magnitude_prune', 'magnitude_prune_svd')]
)
@pytest.mark.parametrize('folders', [[]], indirect=True)
def test_it_equals_pefts_own_merge_where_that_keeps_the_whole_change(folders, method, theirs):
    model = PeftModel.from_pretrained(small(), folders['dusk'], adapter_name='dusk')
    model.load_adapter(folders['night'], 'night')
    options = {} if method == 'linear' else dict(density=DENSITY)
    rank = {} if method == 'linear' else dict(svd_rank=6)
    model.add_weighted_adapter([*FACTORS], [*FACTORS.values()], 'both', theirs, **options, **rank)
    model.set_adapter('both')
    expected = model.merge_and_unload().state_dict()

    given = merged(folders, FACTORS, method=method, **options)

    if method != 'linear':  # the SVD of the first layer keeps 6 of 8 dimensions
        base = small().state_dict()['0.weight']
        u, s, v = torch.linalg.svd(given['0.weight'] - base)
        given['0.weight'] = base + (u[:, :6] * s[:6]) @ v[:6]
    for key, value in expected.items():
        assert torch.allclose(given[key], value, atol=1e-5), key


@pytest.mark.parametrize('folders', [['3']], indirect=True)
def test_a_seed_decides_what_dare_keeps_and_leaves_other_draws_alone(folders):
    options = dict(method='dare_ties', density=DENSITY)
    torch.manual_seed(7)
    expected = torch.rand(1)
    first = merged(folders, FACTORS, **options, seed=1)
    torch.manual_seed(7)
    model = loaded(folders)
    torch.manual_seed(7)
    merge(model, FACTORS, **options, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())
    other = merged(folders, FACTORS, **options, seed=2)
    assert not torch.equal(other['0.weight'], first['0.weight'])
    assert not torch.equal(other['3.weight'], first['3.weight'])


@pytest.mark.parametrize('folders', [[]], indirect=True)
def test_mistakes_are_told_before_anything_is_merged(folders):
    model = loaded(folders)
    for weights, options, message in (
        (FACTORS, dict(method='mean'), r"method is one of linear, ties, .*, got 'mean'"),
        (FACTORS, dict(method='ties'), r'needs the fraction of values that it keeps, .*, got None'),
        (FACTORS, dict(method='ties', density=1.5), r'up to 1, got 1\.5'),
        (FACTORS, dict(density=0.5), r'leave density=0\.5 out'),
        (None, dict(method='ties', density=0.5), r'give weights, a factor for each'),
    ):
        with pytest.raises(ValueError, match=message):
            merge(model, weights, **options)
    assert [*model.peft_config] == ['dusk', 'night']


@pytest.fixture(scope='module')
def runs(lora, tmp_path_factory) -> Path:
    """Links to one adapter under two names."""
    place = tmp_path_factory.mktemp('mixed')
    for name in FACTORS:
        (place / name).symlink_to(Path(lora).parent / 'adapters' / 'iter_2')
    (place / 'config.py').symlink_to(next(Path(lora).parent.glob('*.py')))
    return place


def test_the_tool_merges_folders_by_factor_into_a_plain_checkpoint(runs, lora, base, small_config, in_process, tmp_path):
    args = ('merge', runs / 'config.py', f'{runs}/dusk=0.5', f'{runs}/night=0.5')
    assert 'plain checkpoint' in in_process(main, *args, tmp_path / 'mean.pth')
    assert 'plain checkpoint' in in_process(main, 'merge', runs / 'config.py', lora, tmp_path / 'one.pth')
    in_process(main, *args, tmp_path / 'ties.pth', '--method', 'ties', '--density', '0.2')

    mean, one, ties, start = (
        CheckpointLoader.load_checkpoint(str(path))['state_dict']
        for path in (tmp_path / 'mean.pth', tmp_path / 'one.pth', tmp_path / 'ties.pth', base)
    )
    assert mean.keys() == one.keys() == ties.keys()
    for key, value in one.items():
        assert torch.allclose(mean[key], value, atol=1e-6), key  # half of each of two alike
    for key in ('backbone.blocks.0.attn.qkv.weight', 'decode_head.mask_head.0.weight'):
        kept = (ties[key] != start[key]).float().mean()
        assert 0.15 < kept <= 0.2
    tester = Runner.from_cfg(small_config(load_from=str(tmp_path / 'ties.pth')))
    assert tester.test()['mIoU'] >= 0


def test_mistakes_of_the_tool_end_with_one_sentence(runs, lora, in_process, tmp_path):
    config, out = runs / 'config.py', tmp_path / 'out.pth'
    for args, message in (
        ([f'{runs}/dusk=0.5', f'{runs}/night'], "as FOLDER=FACTOR, such as adapters/dusk=0.5; got '"),
        ([f'{runs}/dusk=0.5', f'{runs}/night=nan'], 'as FOLDER=FACTOR'),
        ([f'{runs}/dusk=0.5', f'{runs}/dusk=0.5'], 'is named twice: add up its factors'),
        ([f'{lora}=0.5'], 'write one with adapter.py export'),
        ([f'{runs}/dusk=0.5', '--method', 'ties'], 'needs the fraction of values that it keeps'),
        ([lora, '--method', 'ties', '--density', '0.5'], 'name each as FOLDER=FACTOR'),
    ):
        positional = [arg for arg in args if '/' in arg]
        assert message in in_process(main, 'merge', config, *positional, out, *args[len(positional) :], check=False)
    assert not out.exists()


def test_heads_that_started_at_random_are_averaged_and_nothing_else(base, small_config, config_file, in_process, tmp_path):
    five = CheckpointLoader.load_checkpoint(base)
    for name in ('weight', 'bias'):
        key = f'decode_head.class_head.{name}'
        five['state_dict'][key] = five['state_dict'][key][:6]
    torch.save(dict(state_dict=five['state_dict'], meta={}), tmp_path / 'five_classes.pth')
    changes = {'custom_hooks.0.save_adapter': True, 'load_from': str(tmp_path / 'five_classes.pth')}
    config = small_config(lora=True, max_iters=1, **changes)
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner = Runner.from_cfg(config)
    runner.train()
    folder = f'{runner.work_dir}/adapters/iter_1'
    (tmp_path / 'again').symlink_to(folder)

    args = ('merge', config_file(small_config(lora=True)))
    text = in_process(main, *args, f'{folder}=1', f'{tmp_path}/again=1', tmp_path / 'sum.pth', check=False)
    assert '2 weights that were fully trained, such as decode_head.class_head.weight, are in no file' in text
    in_process(main, *args, f'{folder}=0.5', f'{tmp_path}/again=0.5', tmp_path / 'mean.pth')
    mean = CheckpointLoader.load_checkpoint(str(tmp_path / 'mean.pth'))['state_dict']
    for name in ('weight', 'bias'):
        key = f'decode_head.class_head.{name}'
        assert torch.allclose(mean[key], runner.model.get_parameter(key), atol=1e-6)
