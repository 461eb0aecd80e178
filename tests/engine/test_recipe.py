"""The published learning rates: of every block, at every step, with adapters, with accumulated gradients."""

import json
import re

import pytest
from conftest import DATA, SMALL_ARCH
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmseg.registry import MODELS, PARAM_SCHEDULERS
from torch import nn

from mmseg_eomt.adapters.config import lora_config
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.engine.schedules import EoMTOptimWrapperConstructor

OPTIMIZER = dict(type='AdamW', lr=1e-4, weight_decay=0.05)


def segmentor(num_layers: int = 12, joint: int = 4, **arch) -> nn.Module:
    arch = dict(embed_dims=8, num_layers=num_layers, num_heads=1, **arch)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type='EoMTViT', arch=arch, img_size=32, num_joint_blocks=joint),
            decode_head=dict(type='EoMTHead', arch=arch, num_classes=2, num_queries=2, num_joint_blocks=joint),
        )
    )


def optim_wrapper(model: nn.Module, accumulative_counts: int = 1, optimizer: dict = OPTIMIZER, **paramwise):
    config = dict(optimizer=optimizer, accumulative_counts=accumulative_counts)
    return EoMTOptimWrapperConstructor(config, paramwise)(model)


def rates(model: nn.Module, wrapper) -> dict[str, float]:
    of = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    return {name: of[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in of}


def schedule(wrapper, **settings):
    return PARAM_SCHEDULERS.build(
        dict(type='TwoWarmupsPolyLR', optimizer=wrapper, by_epoch=False, **{'end': 20000, **settings})
    )


def test_every_rate_at_every_step_is_the_public_implementations():
    reference = json.loads((DATA / 'schedule_llrd08.json').read_text())
    hyper = reference['hyper']
    model = segmentor(reference['depth'], reference['num_joint_blocks'])
    wrapper = optim_wrapper(
        model,
        optimizer=dict(type='AdamW', lr=hyper['lr'], weight_decay=hyper['weight_decay']),
        layer_decay=hyper['llrd'],
        decay_joint_blocks=hyper['llrd_l2_enabled'],
    )
    scheduler = schedule(
        wrapper, warmup_steps=hyper['warmup_steps'], power=hyper['poly_power'], end=reference['total_steps']
    )
    assert all(group['weight_decay'] == hyper['weight_decay'] for group in wrapper.optimizer.param_groups)

    def as_public(name: str) -> str:
        head = model.decode_head
        first = head.arch.num_layers - len(head.blocks)
        name = re.sub(r'^decode_head\.blocks\.(\d+)', lambda m: f'backbone.blocks.{int(m[1]) + first}', name)
        name = name.replace('decode_head.norm', 'backbone.norm').replace('decode_head.query_embed', 'decode_head.q')
        return name.replace('backbone.', 'network.encoder.backbone.').replace('decode_head.', 'network.')

    checked, step = 0, 0
    for wanted in sorted(map(int, reference['lr'])):
        while step < wanted:
            wrapper.optimizer.step()  # no gradients: nothing moves
            scheduler.step()
            step += 1
        given = {as_public(name): rate for name, rate in rates(model, wrapper).items()}
        expected = reference['lr'][str(wanted)]
        assert given.keys() == expected.keys()
        for name, rate in expected.items():
            assert given[name] == pytest.approx(rate, rel=1e-6, abs=1e-15), (wanted, name)
            checked += 1
    assert checked == len(reference['lr']) * len(list(model.parameters()))


def test_joint_blocks_keep_the_full_rate_where_asked():
    model = segmentor()
    given = rates(model, optim_wrapper(model, decay_joint_blocks=False))
    assert {given[f'decode_head.blocks.{i}.attn.qkv.weight'] for i in range(4)} == {1e-4}
    assert given['backbone.blocks.7.attn.qkv.weight'] == pytest.approx(1e-4 * 0.8**4)


def test_an_adapter_counts_as_its_block_and_frozen_layers_are_left_out():
    model = segmentor()
    inject(model, lora_config(r=2, lora_alpha=2, lora_dropout=0.0, target_modules=('qkv',)), ['decode_head.class_head'])
    given = rates(model, optim_wrapper(model))
    assert given['backbone.blocks.3.attn.qkv.lora_A.default.weight'] == pytest.approx(1e-4 * 0.8**8)
    assert given['decode_head.blocks.1.attn.qkv.lora_B.default.weight'] == pytest.approx(1e-4 * 0.8**2)
    assert given['decode_head.class_head.weight'] == 1e-4
    assert set(given) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_custom_keys_multiply_rate_and_decay():
    model = segmentor()
    wrapper = optim_wrapper(model, custom_keys={'class_head': dict(lr_mult=10), 'norm': dict(decay_mult=0)})
    given = rates(model, wrapper)
    assert given['decode_head.class_head.weight'] == pytest.approx(1e-3)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert decays[id(model.decode_head.norm.weight)] == 0
    assert decays[id(model.decode_head.blocks[0].attn.proj.weight)] == 0.05


def test_a_whole_vit_under_another_head_decays_too():
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type='EoMTViT', arch=SMALL_ARCH, img_size=32, num_joint_blocks=0),
            decode_head=dict(type='FCNHead', in_channels=32, channels=8, num_classes=2, norm_cfg=dict(type='BN')),
        )
    )
    wrapper = optim_wrapper(model)
    given = rates(model, wrapper)
    assert given['backbone.blocks.0.attn.qkv.weight'] == given['backbone.patch_embed.proj.weight']
    assert given['backbone.blocks.0.attn.qkv.weight'] == pytest.approx(1e-4 * 0.8**3)
    assert given['backbone.norm.weight'] == given['decode_head.conv_seg.weight'] == 1e-4
    assert {group['part'] for group in wrapper.optimizer.param_groups} == {'pretrained', 'new'}


def test_warm_ups_count_the_optimizers_steps():
    model = segmentor()
    every, fourth = optim_wrapper(model), optim_wrapper(model, accumulative_counts=4)
    plain, accumulated = schedule(every, end=20000), schedule(fourth, end=80000)
    for step in range(1, 1700):
        plain.step()
        for _ in range(4):
            accumulated.step()
        if step % 100 == 0:
            assert rates(model, every) == pytest.approx(rates(model, fourth)), step


def test_a_run_that_ends_in_the_warm_ups_is_refused():
    with pytest.raises(ValueError, match=r'500 \+ 1000 steps, but it has 1000: 2000 iterations, 2 per step'):
        schedule(optim_wrapper(segmentor(), accumulative_counts=2), end=2000)


def test_other_constructors_and_keys_are_refused():
    model = segmentor()
    with pytest.raises(ValueError, match='EoMTOptimWrapperConstructor'):
        schedule(build_optim_wrapper(model, dict(optimizer=OPTIMIZER)))
    with pytest.raises(ValueError, match=r"takes \['layer_decay'.*got \['norm_decay_mult'\]"):
        optim_wrapper(model, norm_decay_mult=0.0)
    with pytest.raises(ValueError, match='needs an lr'):
        optim_wrapper(model, optimizer=dict(type='SGD'))
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match='no trainable parameter'):
        optim_wrapper(model)


@pytest.mark.parametrize('lora', [False, True])
def test_a_run_follows_the_schedule_and_a_resumed_one_goes_on(lora, small_config, base):
    recipe = {
        'optim_wrapper.constructor': 'EoMTOptimWrapperConstructor',
        'optim_wrapper.accumulative_counts': 2,
        'param_scheduler': [dict(type='TwoWarmupsPolyLR', warmup_steps=(1, 2), by_epoch=False)],
        'default_hooks.checkpoint.interval': 6,
    }
    if lora:
        recipe['load_from'] = base

    def run(max_iters: int, **changes) -> Runner:
        runner = Runner.from_cfg(small_config(lora=lora, max_iters=max_iters, name='whole', **recipe, **changes))
        runner.train()
        return runner

    whole = run(12)
    logged = list(whole.message_hub.get_scalar('train/lr').data[0])
    assert max(logged) > 0
    shares = [share for share in (0, 0, 0.5, 1, (2 / 3) ** 0.9, (1 / 3) ** 0.9) for _ in range(2)]  # two iterations a step
    assert [rate / max(logged) for rate in logged] == pytest.approx(shares)

    resumed = Runner.from_cfg(small_config(lora=lora, max_iters=12, name='whole', resume=True, **recipe))
    resumed._load_from = f'{whole.work_dir}/iter_6.pth'
    resumed.train()
    assert list(resumed.message_hub.get_scalar('train/lr').data[0])[-6:] == logged[-6:]
    steps = {int(state['step']) for state in resumed.optim_wrapper.optimizer.state_dict()['state'].values()}
    assert steps == {6}

    longer = Runner.from_cfg(small_config(lora=lora, max_iters=24, name='whole', resume=True, **recipe))
    longer._load_from = f'{whole.work_dir}/iter_6.pth'
    with pytest.raises(ValueError, match='had end=12 in its TwoWarmupsPolyLR, here it is 24'):
        longer.train()


def test_either_warm_up_may_be_left_out():
    for warmups in ((0, 5), (5, 0), (0, 0)):
        wrapper = optim_wrapper(segmentor())
        scheduler = schedule(wrapper, warmup_steps=warmups, end=20)
        for _ in range(19):
            wrapper.optimizer.step()
            scheduler.step()
        assert all(0 < group['lr'] < 1e-5 for group in wrapper.optimizer.param_groups)


@pytest.mark.parametrize('wrong', [dict(layer_decay=0.0), dict(layer_decay=-0.8), dict(custom_keys={'norm': dict(lr=1e-9)})])
def test_rates_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match='layer_decay must be above 0, and custom_keys take lr_mult and decay_mult'):
        optim_wrapper(segmentor(), **wrong)
