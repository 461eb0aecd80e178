"""Adapters in a segmentor: what they match, what trains, and what is refused."""

import copy
import pickle
import sys

import pytest
import torch
from conftest import SMALL_ARCH
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from mmseg_eomt.adapters import inject, lora_config
from mmseg_eomt.adapters.names import adapter_names
from mmseg_eomt.adapters.summary import summarise
from mmseg_eomt.models.resize import resize_pos_embed

TARGETS = ('qkv', 'proj', 'q_proj', 'v_proj')
NEW_PARTS = ('decode_head.query_embed', 'decode_head.class_head', 'decode_head.mask_head', 'decode_head.upscale')


def segmentor(**backbone) -> torch.nn.Module:
    arch = dict(SMALL_ARCH)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone={'type': 'EoMTViT', 'arch': arch, 'img_size': 64, 'num_joint_blocks': 2, **backbone},
            decode_head=dict(type='EoMTHead', arch=arch, num_classes=5, num_joint_blocks=2, num_queries=8),
            train_cfg=dict(),
            test_cfg=ConfigDict(mode='whole'),
        )
    ).eval()


def config(targets=TARGETS, exclude=('patch_embed.proj',), **changes):
    return lora_config(
        **{'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.0, **changes}, target_modules=targets, exclude_modules=exclude
    )


def test_the_defaults_match_attention_and_not_the_patch_embedding():
    model = segmentor()
    matches = inject(model, config(), NEW_PARTS)

    assert {t: len(names) for t, names in matches.items()} == dict(qkv=4, proj=4, q_proj=0, v_proj=0)
    assert all('.attn.' in name for name in adapter_names(model))
    assert type(model.backbone.patch_embed.proj) is torch.nn.Conv2d
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if '.lora_' in n or n.startswith(NEW_PARTS)}


def test_fresh_adapters_change_no_prediction():
    model, image = segmentor(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.encode_decode(image, [dict(img_shape=(64, 64))])
        inject(model, config(), NEW_PARTS)
        assert torch.equal(model.encode_decode(image, [dict(img_shape=(64, 64))]), before)


def test_the_summary_counts_what_trains_and_what_each_target_matched():
    model = segmentor()
    table = summarise(model, inject(model, config(), NEW_PARTS))

    adapters = 4 * (4 * (32 + 96) + 4 * (32 + 32))
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith(NEW_PARTS))
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    counts = {' '.join(line.split()[:-1]): line.split()[-1] for line in table.splitlines()}
    assert counts['backbone adapters'] == counts['decode_head adapters'] == f'{adapters // 2:,}'
    assert counts['decode_head.query_embed'] == f'{8 * 32:,}'
    assert counts['trainable'] == f'{adapters + head:,}'
    assert counts['frozen'] == f'{frozen:,}'
    assert f'{(adapters + head) / (adapters + head + frozen):.2%} of all parameters train' in table
    assert 'matched layers per target: proj 4, q_proj 0, qkv 4, v_proj 0' in table


def test_a_plain_checkpoints_weights_land_in_the_base_layers(tmp_path):
    plain, adapted = segmentor(), segmentor()
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    inject(adapted, config(), NEW_PARTS)
    image, meta = torch.randn(1, 3, 64, 64), [dict(img_shape=(64, 64))]

    load_checkpoint(adapted, str(tmp_path / 'plain.pth'), strict=True)  # and nothing is called missing

    with torch.no_grad():
        assert torch.equal(adapted.encode_decode(image, meta), plain.encode_decode(image, meta))


def test_loading_a_lora_checkpoint_without_adapters_fails_loudly(tmp_path):
    adapted = segmentor()
    inject(adapted, config(), NEW_PARTS)
    torch.save(adapted.state_dict(), tmp_path / 'lora.pth')
    with pytest.raises(ValueError, match=r'lora.pth has adapters but does not say which: load it with LoRAHook'):
        load_checkpoint(segmentor(), str(tmp_path / 'lora.pth'))


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (dict(r=8), r'16 of another shape(.|\n)*lora_A.default.weight: checkpoint \(4, 32\), model \(8, 32\)'),
        (dict(targets=['qkv']), r'16 not in the model.*target_modules(.|\n)*attn.proj'),
    ],
)
def test_loading_other_adapters_fails_with_the_difference(tmp_path, changes, told):
    adapted, other = segmentor(), segmentor()
    inject(adapted, config(), NEW_PARTS)
    torch.save(adapted.state_dict(), tmp_path / 'lora.pth')
    inject(other, config(**changes), NEW_PARTS)
    with pytest.raises(RuntimeError, match=told):
        load_checkpoint(other, str(tmp_path / 'lora.pth'))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(r=0), 'rank r must be a whole number of at least 1, got 0'),
        (dict(r=2.5), 'got 2.5'),
        (dict(lora_dropout=1.0), 'lora_dropout must be from 0 to below 1, got 1.0'),
        (dict(lora_dropout=-0.1), 'got -0.1'),
        (dict(lora_alpha=0), 'lora_alpha must be a number above 0'),
        (dict(lora_alpha='a'), "got 'a'"),
        (dict(targets='qkv'), "lists of names, got 'qkv'"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_targets_that_match_nothing_are_refused_with_what_could_match():
    with pytest.raises(ValueError, match=r"\['query'\] match no layer.*fc1 \(4\).*qkv \(4\)"):
        inject(segmentor(), config(['query']), NEW_PARTS)


def test_layers_that_pytorchs_attention_never_calls_are_no_targets():
    attention = torch.nn.ModuleDict(dict(attn=torch.nn.MultiheadAttention(32, 2), fc1=torch.nn.Linear(32, 32)))
    with pytest.raises(ValueError, match=r'match no layer.*Names that would match: fc1 \(1\), in_proj_weight \(1\)\.'):
        inject(attention, config(['out_proj']))
    assert inject(attention, config(['out_proj', 'fc1'])) == dict(fc1=['fc1'], out_proj=[])
    assert adapter_names(attention) == ['fc1.lora_A.default.weight', 'fc1.lora_B.default.weight']


def test_any_model_without_adapters_refuses_a_lora_checkpoint(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    plain = copy.deepcopy(model)
    inject(model, config(['0']))
    torch.save(model.state_dict(), tmp_path / 'lora.pth')
    with pytest.raises(ValueError, match=r'lora.pth has adapters but does not say which'):
        load_checkpoint(plain, str(tmp_path / 'lora.pth'))


def test_an_adapted_model_and_its_copy_load_each_others_weights(tmp_path):
    model = segmentor()
    inject(model, config(), NEW_PARTS)
    torch.save(model.state_dict(), tmp_path / 'lora.pth')
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.backbone.blocks[0].attn.qkv.lora_B['default'].weight)

    load_checkpoint(other, str(tmp_path / 'lora.pth'))

    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    pickle.dumps(model)


def test_a_plain_checkpoint_of_another_image_size_brings_its_position_embedding(tmp_path):
    small, large = segmentor(), segmentor(img_size=128)
    torch.save(small.state_dict(), tmp_path / 'small.pth')
    load_checkpoint(large, str(tmp_path / 'small.pth'))

    expected = resize_pos_embed(small.backbone.pos_embed, (4, 4), (8, 8))
    assert torch.equal(large.backbone.pos_embed, expected)
    wide = segmentor(img_size=(64, 96))
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    load_checkpoint(large, str(tmp_path / 'wide.pth'))
    assert torch.equal(large.backbone.pos_embed, resize_pos_embed(wide.backbone.pos_embed, (4, 6), (8, 8)))
    older = {name: value for name, value in wide.state_dict().items() if name != 'backbone.pos_grid'}
    torch.save(older, tmp_path / 'older.pth')
    with pytest.raises(ValueError, match='24 patches, no square'):
        load_checkpoint(large, str(tmp_path / 'older.pth'))


def test_layers_in_modules_that_are_trained_whole_are_not_adapted():
    model = segmentor()
    inject(model, config(), ['decode_head'])
    assert {name.split('.')[0] for name in adapter_names(model)} == {'backbone'}
    assert all(parameter.requires_grad for parameter in model.decode_head.parameters())


def test_a_model_is_not_adapted_twice():
    model = segmentor()
    inject(model, config())
    with pytest.raises(ValueError, match='has adapters already'):
        inject(model, config())


def test_an_unknown_trainable_module_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"\['decode_head.conv_seg'\] are not in the model.*decode_head.class_head"):
        inject(segmentor(), config(), ['decode_head.conv_seg'])


def test_nothing_left_to_train_is_refused():
    with pytest.raises(ValueError, match='Nothing is left to train'):
        inject(segmentor(), config([]), [])


def test_without_targets_only_the_named_modules_train():
    model = segmentor()
    inject(model, config([]), ['decode_head.class_head'])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'decode_head.class_head.weight', 'decode_head.class_head.bias'}


def test_missing_peft_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match='run pip install peft'):
        config()
