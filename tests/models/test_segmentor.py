"""One ViT, said once, for backbone and head of a segmentor."""

import pytest
import torch
from conftest import SMALL_ARCH, reference
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import nn

from mmseg_eomt.adapters.base_weights import pretrained_sources
from mmseg_eomt.models.segmentor import share_vit

OTHER_ARCH = dict(SMALL_ARCH, embed_dims=64)
PREPROCESSOR = dict(type='SegDataPreProcessor', mean=[0.0] * 3, std=[1.0] * 3)
VIT = dict(arch=SMALL_ARCH, num_joint_blocks=2, img_size=(64, 96), num_register_tokens=0, patch_size=8, with_cp=True)
HEAD = dict(type='EoMTHead', num_classes=5, num_queries=8)


@pytest.fixture(autouse=True)
def toolbox() -> None:
    register_all_modules()


def settings(**changes) -> dict:
    model = dict(
        type='EoMTSegmentor',
        vit=VIT,
        data_preprocessor=PREPROCESSOR,
        backbone=dict(type='EoMTViT'),
        decode_head=HEAD,
        test_cfg=dict(mode='slide'),
    )
    return {**model, **changes}


def build(**changes) -> nn.Module:
    return MODELS.build(settings(**changes))


def test_backbone_head_padding_and_windows_get_what_vit_says():
    model = build()
    vit, head = model.backbone, model.decode_head
    assert (vit.arch, vit.num_joint_blocks, vit.patch_size, vit.with_cp) == (head.arch, 2, 8, True)
    assert (len(head.blocks), head.patch_size, head.with_cp) == (2, 8, True)
    assert (vit.grid_size, vit.reg_token) == ((8, 12), None)
    assert model.data_preprocessor.size == model.test_cfg.crop_size == model.test_cfg.stride == (64, 96)


def test_a_number_is_the_side_of_a_square():
    model = build(vit=dict(VIT, img_size=64))
    assert model.data_preprocessor.size == model.test_cfg.crop_size == (64, 64)


def test_what_stands_elsewhere_is_kept():
    model = build(
        backbone=dict(type='EoMTViT', with_cp=False, img_size=128),
        data_preprocessor=dict(PREPROCESSOR, size=(32, 32)),
        test_cfg=dict(mode='slide_evenly', crop_size=(48, 48)),
    )
    assert (model.backbone.with_cp, model.decode_head.with_cp, model.backbone.grid_size) == (False, True, (16, 16))
    assert (model.data_preprocessor.size, model.test_cfg.crop_size) == ((32, 32), (48, 48))
    assert build(data_preprocessor=dict(PREPROCESSOR, size_divisor=32)).data_preprocessor.size is None
    assert build(test_cfg=dict(mode='whole')).test_cfg == dict(mode='whole')


def test_two_parts_that_agree_go_before_vit():
    """As in a config that inherits from one of ours and sets both parts, which was the only way once."""
    arch = dict(OTHER_ARCH, _delete_=True)
    model = build(backbone=dict(type='EoMTViT', arch=arch), decode_head=dict(HEAD, arch=arch))
    assert model.backbone.arch.embed_dims == model.decode_head.arch.embed_dims == 64
    config = Config(dict(model=settings()))
    config.merge_from_dict({f'model.{part}.arch.norm_eps': 1e-5 for part in ('backbone', 'decode_head')})
    model = MODELS.build(config.model)
    assert (model.decode_head.arch.norm_eps, model.decode_head.arch.embed_dims) == (1e-5, 32)


@pytest.mark.parametrize(
    ('part', 'change', 'message'),
    [
        ('backbone', dict(num_joint_blocks=3), 'num_joint_blocks .*got 3 and 2'),
        ('decode_head', dict(patch_size=16), 'patch_size .*got 8 and 16'),
        ('decode_head', dict(arch=OTHER_ARCH), 'arch .*embed_dims=32,.* and .*embed_dims=64'),
        ('backbone', dict(init_cfg=dict(checkpoint='b.pth')), 'init_cfg .*b.pth.* and .*a.pth'),
        ('decode_head', dict(init_cfg=None), 'init_cfg .*a.pth.* and None'),
    ],
)
def test_a_part_that_contradicts_the_other_is_refused(part, change, message):
    model = settings(vit=dict(VIT, pretrained='a.pth'))
    model[part] = {**model[part], **change}
    with pytest.raises(ValueError, match=f'{message}.*Set it once'):
        MODELS.build(model)


def test_a_field_that_no_vit_has_is_refused():
    with pytest.raises(ValueError, match=r"vit takes \['arch', .*got \['depth'\] too"):
        build(vit=dict(VIT, depth=12))


def test_other_backbones_and_heads_are_left_as_they_are():
    fcn = dict(type='FCNHead', in_channels=32, channels=8, num_classes=5, norm_cfg=dict(type='BN'))
    given = dict(vit=dict(VIT, pretrained='vit.pth'), backbone=dict(type='EoMTViT', num_joint_blocks=0), decode_head=fcn)
    shared = share_vit(settings(**given))
    assert shared['decode_head'] == fcn
    assert shared['backbone']['init_cfg'] == dict(type='Pretrained', checkpoint='vit.pth')
    build(**given)

    resnet = dict(type='ResNetV1c', depth=18, base_channels=16, stem_channels=16)
    head = dict(HEAD, in_channels=128, patch_size=32, init_cfg=None)
    assert share_vit(settings(backbone=resnet, decode_head=head))['backbone'] == resnet
    model = build(vit=dict(VIT, pretrained='vit.pth'), backbone=resnet, decode_head=head)
    assert len(model.decode_head.blocks) == 2 and not pretrained_sources(model)


def test_a_file_of_the_segmentor_is_read_in_place_of_pretrained():
    model = build(vit=dict(VIT, pretrained='vit.pth'), init_cfg=dict(type='Pretrained', checkpoint='whole.pth'))
    assert pretrained_sources(model) == {'': dict(type='Pretrained', checkpoint='whole.pth')}


@pytest.mark.parametrize('said', ['in vit', 'in both parts'])
def test_the_file_is_read_once_and_fills_and_is_noted_as_in_two_full_parts(said, tmp_path, monkeypatch):
    torch.save(reference('dinov2_release_to_16.pt')['release_state_dict'], tmp_path / 'vit.pth')
    vit = dict(arch=dict(embed_dims=48, num_layers=2, num_heads=3), num_joint_blocks=1)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'))
    backbone, head = dict(type='EoMTViT', img_size=64, **vit), dict(HEAD, **vit)
    full = dict(backbone=dict(backbone, init_cfg=init_cfg), decode_head=dict(head, init_cfg=init_cfg))
    stock = MODELS.build(dict(type='EncoderDecoder', **full))
    stock.init_weights()

    vit |= dict(img_size=64, pretrained=init_cfg['checkpoint'])
    parts = dict(backbone=dict(type='EoMTViT'), decode_head=HEAD)
    model = build(vit=vit, **parts) if said == 'in vit' else build(vit=None, **full)
    read, load = [], CheckpointLoader.load_checkpoint
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', lambda name, *args: read.append(name) or load(name, *args))
    model.init_weights()

    assert read == [init_cfg['checkpoint']]
    assert pretrained_sources(model) == pretrained_sources(stock) == dict(backbone=init_cfg, decode_head=init_cfg)
    from_file = [
        name for name in stock.state_dict() if name.startswith(('backbone.', 'decode_head.blocks', 'decode_head.norm'))
    ]
    assert len(from_file) > 30
    assert all(torch.equal(model.state_dict()[name], stock.state_dict()[name]) for name in from_file)
