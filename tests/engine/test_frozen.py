"""A frozen backbone costs no gradients: what trains is the decode head, and what is kept for it is the head's."""

import functools
import logging
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL_ARCH
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.engine.frozen_part import FrozenPart
from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.lateral_vit import LateralViT

FROZEN = sorted(path.name for path in (ROOT / 'configs').glob('eomt_frozen_*.py'))
SPLIT_VIT, WHOLE_VIT = (functools.partial(EoMTViT, num_joint_blocks=number) for number in (2, 0))
HOOK = dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head'])
ROTARY = dict(rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv')


@pytest.mark.parametrize('name', [name for name in FROZEN if 'demo' not in name])
def test_a_frozen_recipe_is_the_full_one_with_another_hook(name):
    assert len((ROOT / 'configs' / name).read_text().splitlines()) <= 5
    frozen, full = (Config.fromfile(ROOT / 'configs' / twin) for twin in (name, re.sub('frozen_(cached_)?', '', name)))
    hook, annealing, *cache = frozen.pop('custom_hooks')
    assert hook == HOOK
    assert [annealing] == full.pop('custom_hooks')
    assert [one.type for one in cache] == ['FeatureCacheHook'] * ('cached' in name)
    for variable in ('frozen', 'feature_cache'):  # of _base_/frozen.py
        frozen.pop(variable)
    assert frozen.to_dict() == full.to_dict()


def frozen_model(**arch: object) -> nn.Module:
    """A small segmentor whose decode head alone trains."""
    vit = dict(arch=dict(SMALL_ARCH, **arch), num_joint_blocks=2, img_size=(64, 64))
    model = MODELS.build(
        dict(
            type='EoMTSegmentor',
            vit=vit,
            backbone=dict(type='EoMTViT'),
            decode_head=dict(type='EoMTHead', num_classes=3, num_queries=5),
        )
    )
    inject(model, None, ['decode_head'])
    return model.train()


def test_blocks_without_layers_to_adapt_are_warned_of(caplog):
    hook = LoRAHook(target_modules=[], trainable_modules=['decode_head'], blocks=(1, -1))
    hook._report_blocks(SimpleNamespace(logger=logging.getLogger('frozen')), frozen_model())
    assert caplog.messages == ['blocks=(1, -1) has no effect: without target_modules nothing is adapted.']


class _Saved:
    """A tensor that autograd has saved; it lives as long as the graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept(function: Callable, *args: object, **kwargs: object) -> tuple[Any, dict[int, int]]:
    """What a function returns, and the storages that its graph holds for the backward pass: address and bytes."""
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def save(tensor: Tensor) -> _Saved:
        holder = _Saved(tensor)
        saved.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(save, lambda holder: holder.tensor):
        output = function(*args, **kwargs)
    storages = [holder.tensor.untyped_storage() for holder in saved]
    return output, {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('arch', [{}, ROTARY], ids=['learned', 'rotary'])
def test_a_frozen_backbone_keeps_nothing_for_the_backward_pass(arch, with_cp):
    """Activation memory is that of the head on features that came from elsewhere."""
    model = frozen_model(**arch)
    model.backbone.with_cp = with_cp
    image = torch.randn(2, 3, 64, 64)

    feats, of_backbone = kept(model.backbone, image)
    _, of_model = kept(model, image, mode='tensor')
    _, of_head = kept(model.decode_head, [[part.clone() for part in feats[0]]])

    assert of_backbone == {}
    assert not any(part.requires_grad for part in feats[0])
    assert not of_model.keys() & {parameter.data_ptr() for parameter in model.backbone.parameters()}
    assert sum(of_model.values()) == sum(of_head.values()) > 0


def test_a_trained_backbone_would_be_noticed():
    model = frozen_model()
    model.backbone.blocks[1].norm1.weight.requires_grad = True
    assert kept(model.backbone, torch.randn(2, 3, 64, 64))[1]


@pytest.mark.parametrize('arch', [{}, ROTARY], ids=['learned', 'rotary'])
@pytest.mark.parametrize(
    ('kind', 'outputs'), [(SPLIT_VIT, (-1,)), (SPLIT_VIT, (0, 1)), (WHOLE_VIT, (0, 1, 3)), (LateralViT, (0, 1, 3))]
)
@pytest.mark.parametrize('first_trained', [1, 2, None])
def test_the_frozen_part_and_the_rest_are_the_backbone(arch, kind, outputs, first_trained):
    """Wherever it is cut, and whichever blocks' outputs heads take."""
    arch = dict(SMALL_ARCH, **arch)
    vit = kind(arch, img_size=(32, 64), out_indices=outputs).requires_grad_(False)
    if first_trained is not None and first_trained < len(vit.blocks):
        vit.blocks[first_trained].requires_grad_()
    part, image = FrozenPart(vit), torch.randn(2, 3, 32, 64)
    expected = vit.eval()(image)
    given = part.finish(vit, part.encode(image))

    assert part.num_blocks == min(first_trained or 4, len(vit.blocks))
    assert len(given) == len(expected) == len(outputs)
    for one, other in zip(given, expected):
        for value, wanted in zip(*(out if isinstance(out, list) else [out] for out in (one, other)), strict=True):
            assert torch.equal(value, wanted)


def test_a_frozen_run_trains_the_head_alone_and_saves_no_more(small_config, base, capfd):
    """The checkpoint finds its backbone again, and the log says what is frozen."""
    config = small_config(max_iters=2, load_from=base, custom_hooks=[HOOK])
    runner = Runner.from_cfg(config)
    runner.train()

    log = ''.join(capfd.readouterr())
    start = torch.load(base, weights_only=True)['state_dict']
    saved = torch.load(f'{runner.work_dir}/iter_2.pth', weights_only=True)
    trained = {name: value for name, value in runner.model.state_dict().items() if not torch.equal(value, start[name])}
    assert trained and all(name.startswith('decode_head.') for name in trained)
    assert trained.keys() <= saved['state_dict'].keys()
    assert not any(name.startswith('backbone.blocks') for name in saved['state_dict'])
    assert len(saved['optimizer']['state']) == len(list(runner.model.decode_head.parameters()))
    frozen = sum(parameter.numel() for parameter in runner.model.backbone.parameters())
    assert re.search(rf'frozen +{frozen:,}\n', log)

    path = Path(runner.work_dir) / 'config.py'
    config.dump(path)
    model = init_model(str(path), f'{runner.work_dir}/iter_2.pth', device='cpu')
    assert all(torch.equal(value, runner.model.state_dict()[name]) for name, value in model.state_dict().items())
