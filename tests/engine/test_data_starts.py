"""Starts that PEFT finds in data: from the run's own batches, once, and without a trace in what training sees."""

import sys
from pathlib import Path

import peft
import pytest
import torch
from conftest import ROOT, free_port, run_tool
from mmengine.hooks import Hook
from mmengine.runner import Runner
from test_exact_resume import NoteBatches, assert_exact, augmented
from torch import nn

from mmseg_eomt.adapters import inject, lora_config
from mmseg_eomt.adapters.names import adapter_names, tuner_layers
from mmseg_eomt.engine import data_starts

LOOKED = 'training batches are looked at'
LORA_GA = pytest.mark.skipif(not hasattr(peft, 'LoraGAConfig'), reason='earlier versions of PEFT do not know this start')


@pytest.fixture(autouse=True)
def _few_batches(monkeypatch) -> None:
    monkeypatch.setattr(data_starts, 'BATCHES', 4)


class _Before(Hook):
    """Note the adapted model's outputs before its first step, and its adapters."""

    def before_train(self, runner: Runner) -> None:
        model = runner.model.eval()
        with torch.no_grad():
            self.logits = model(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), mode='tensor')
        self.layers = {name: layer.lora_A['default'].weight.clone() for name, layer in tuner_layers(model).items()}
        self.random = torch.get_rng_state()


def begin(config) -> tuple[Runner, _Before]:
    """A run of one iteration, and what there was before it."""
    runner, before = Runner.from_cfg(config), _Before()
    runner.register_hook(before)
    runner.train()
    return runner, before


def hooks(start: str | bool, **fields) -> list[dict]:
    return [dict(type='LoRAHook', r=4, lora_dropout=0, peft=dict(init_lora_weights=start, **fields))]


@pytest.fixture
def short(small_config, base):
    """Make a config of one iteration without evaluation."""

    def make(start: str | bool, **changes):
        settings = dict(load_from=base, max_iters=1, name=str(start), custom_hooks=hooks(start))
        config = small_config(lora=True, **{**settings, **changes})
        config.merge_from_dict(dict(val_dataloader=None, val_cfg=None, val_evaluator=None))
        return config

    return make


def test_eva_starts_at_the_main_directions_of_what_comes_into_a_layer(short):
    runner, before = begin(short('eva'))
    inputs = []
    plain = Runner.from_cfg(short('plain', custom_hooks=[]))
    plain.load_or_resume()
    layer = plain.model.backbone.blocks[1].attn.qkv
    layer.register_forward_hook(lambda _layer, given, _out: inputs.append(given[0].flatten(0, -2)))
    batches = data_starts.first_batches(runner)
    assert len(batches) == 4
    for batch in batches:
        with torch.no_grad():
            plain.model.eval()(**plain.model.data_preprocessor(batch, True), mode='tensor')
    rows = torch.cat(inputs)
    rows = rows - rows.mean(0)
    best = torch.linalg.svdvals(rows)[:4].square().sum()
    directions = before.layers['backbone.blocks.1.attn.qkv']
    assert torch.allclose(directions @ directions.T, torch.eye(4), atol=1e-4)
    assert (rows @ directions.T).square().sum() > 0.9 * best
    assert (rows @ torch.linalg.qr(torch.randn(rows.shape[1], 4))[0]).square().sum() < 0.7 * best


@pytest.mark.parametrize('start', ['eva', pytest.param('lora_ga', marks=LORA_GA), 'corda'])
def test_the_model_starts_where_it_was(short, start):
    if start == 'corda':
        pytest.importorskip('attr', reason="PEFT's CorDA imports attrs, which PEFT does not ask for")
    expected, given = begin(short(True))[1], begin(short(start))[1]
    for one, other in zip(given.logits, expected.logits, strict=True):
        assert torch.allclose(
            torch.stack([*one]), torch.stack([*other]), atol=1e-3 * float(torch.stack([*other]).abs().max())
        )
    assert not any(torch.equal(values, expected.layers[name]) for name, values in given.layers.items())


def test_training_sees_the_images_that_it_would_have_seen(short):
    seen, random = [], []
    for start in (True, 'eva'):
        runner, noted = Runner.from_cfg(augmented(short(start, max_iters=3))), (NoteBatches(), _Before())
        for hook in noted:
            runner.register_hook(hook)
        runner.train()
        seen.append([one[:3] for one in noted[0].seen])
        random.append(noted[1].random)
    assert seen[0] == seen[1]
    assert torch.equal(*random)


@LORA_GA
def test_a_resumed_run_does_not_look_again(small_config, base, capfd):
    """The whole run and the one that is stopped look, and the one that goes on does not."""
    assert_exact(small_config, lora=True, load_from=base, custom_hooks=hooks('lora_ga'))
    assert ''.join(capfd.readouterr()).count(LOOKED) == 2


@pytest.mark.parametrize('start', ['eva', 'corda', pytest.param('lora_ga', marks=LORA_GA)])
def test_without_a_run_there_are_no_images_to_start_from(start):
    with pytest.raises(ValueError, match=r'none have come through 0: it needs a training run with LoRAHook'):
        inject(nn.Sequential(nn.Linear(8, 8)), lora_config(2, 4, 0.0, ['0'], init_lora_weights=start))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(init_lora_weights='loftq'), r"on a CUDA device alone: use base_precision='4bit' with another start"),
        (dict(init_lora_weights='eva', eva_config=dict(rho=2.0)), r'rho=2.0, by which EVA moves ranks .* set rho=1'),
    ],
)
def test_starts_that_cannot_be_used_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        lora_config(2, 4, 0.0, ['0'], **fields)


def test_a_layer_that_no_image_comes_through_is_named(short):
    changes = dict(load_from=None, custom_hooks=[dict(hooks('eva')[0], target_modules=['qkv', 'spare'])])
    runner = Runner.from_cfg(short('eva', **changes))
    runner.model.backbone.spare = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r'does not call 1 of them, such as backbone.spare: name them in exclude_modules'):
        runner.train()
    assert not adapter_names(runner.model)


def test_without_attrs_the_message_says_what_to_install(short, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft.tuners.lora.corda', None)
    with pytest.raises(ImportError, match=r"PEFT's CorDA needs a package .* pip install attrs"):
        Runner.from_cfg(short('corda')).train()


@LORA_GA
@pytest.mark.slow
def test_two_processes_start_from_the_same_numbers(short, config_file, tmp_path):
    """Each looks at its own images."""
    config = short('lora_ga')
    config.custom_imports['imports'] += ['save_each_rank']
    config.custom_hooks.append(dict(type='SaveEachRank', out=str(tmp_path)))
    run_tool('tools/dist_train.sh', config_file(config), 2, PORT=free_port(), PYTHONPATH=f'{ROOT}:{ROOT / "tests"}')
    first, second = (torch.load(tmp_path / f'rank_{rank}.pth', weights_only=True) for rank in (0, 1))
    for kind in ('parameters', 'buffers'):
        assert all(torch.equal(value, second[kind][name]) for name, value in first[kind].items())
    weights = torch.load(Path(config.work_dir) / 'iter_1.pth', weights_only=True)['state_dict']
    assert any('.adapter_start_A' in name for name in weights)
