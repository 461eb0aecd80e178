"""PMTHead and LateralViT: what they take and give, in training and evaluation, and what they refuse."""

import pytest
import torch
from conftest import SMALL_ARCH, relative_error
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from packaging.version import Version

from mmseg_eomt.engine.checks import check_outputs
from mmseg_eomt.export import ImageToScores, load_program, save_program, to_program
from mmseg_eomt.models import EoMTViT, LateralViT, PMTHead
from mmseg_eomt.models.segmentor import share_vit

ROTARY = dict(SMALL_ARCH, rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv')
SIZES = dict(num_blocks=2, mlp_hidden_dims=48, num_queries=6, num_points=64)
NORM = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def segmentor(arch: dict = SMALL_ARCH, **changes) -> dict:
    return dict(
        type='EoMTSegmentor',
        vit=dict(arch=arch, img_size=64, patch_size=16),
        data_preprocessor=dict(type='SegDataPreProcessor', mean=NORM[0], std=NORM[1]),
        backbone=changes.pop('backbone', dict(type='LateralViT')),
        decode_head=dict(SIZES, type='PMTHead', num_classes=5, **changes),
        test_cfg=dict(mode='slide_evenly'),
    )


def build(settings: dict) -> torch.nn.Module:
    register_all_modules()
    return MODELS.build(settings)


@pytest.mark.parametrize('arch', [SMALL_ARCH, ROTARY], ids=['learned', 'rotary'])
def test_the_backbone_gives_normed_maps_with_prefix_tokens_after_each_quarter(arch):
    vit = LateralViT(arch, 64).eval()
    whole = EoMTViT(arch, 64, num_joint_blocks=0, out_indices=(0, 1, 2, 3)).eval()
    whole.load_state_dict(vit.state_dict())
    image = torch.randn(2, 3, 48, 70)

    laterals, maps = vit(image), whole(image)

    assert vit.out_indices == (0, 1, 2, 3)
    for lateral, feature in zip(laterals, maps):
        normed = feature if feature is maps[-1] else vit.norm(feature.flatten(2).mT).mT.view_as(feature)
        assert torch.allclose(lateral[0], normed, atol=1e-6)
        assert lateral[1].shape == (2, 5, 32)
        assert len(lateral) == (2 if arch is SMALL_ARCH else 3)


def test_the_default_outputs_of_24_blocks_are_the_published_ones():
    with torch.device('meta'):
        assert LateralViT('dinov3_large').out_indices == (5, 11, 17, 23)
        assert LateralViT('dinov3_small').out_indices == (2, 5, 8, 11)


def test_losses_reach_every_parameter_of_the_decoder_and_its_norms_follow_the_batches():
    vit, head = LateralViT(SMALL_ARCH, 64).requires_grad_(False), PMTHead(5, SMALL_ARCH, **SIZES)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, 64, 64))))
    losses = head.loss(vit(torch.randn(2, 3, 64, 64)), [sample, sample], {})

    sum(value for name, value in losses.items() if 'loss' in name).backward()

    assert {name for name, parameter in head.named_parameters() if parameter.grad is None} == set()
    assert {'loss_cls', 'd0.loss_mask', 'd1.loss_dice'} < set(losses)
    assert all(lateral.norm.running_mean.any() for lateral in head.laterals)


def test_rotary_positions_of_the_decoder_are_rescaled_at_random_in_training_alone():
    head, feature = PMTHead(5, SMALL_ARCH, in_index=[0], **SIZES), [torch.randn(2, 32, 4, 4)]
    ropes = [head.train(training).tokens(feature)[2] for training in (True, True, False, False)]
    assert not torch.equal(ropes[0], ropes[1])
    assert torch.equal(ropes[2], ropes[3])


def test_evaluation_is_of_each_image_alone():
    vit, head = LateralViT(ROTARY, 64).eval(), PMTHead(5, ROTARY, **SIZES).eval()
    images = torch.randn(2, 3, 64, 64)
    together, alone = head(vit(images))[0][0], head(vit(images[:1]))[0][0]
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_the_vit_is_said_once_and_joint_blocks_are_none():
    settings = segmentor()
    settings['vit'].update(num_joint_blocks=4, pretrained='vit.pth', with_cp=True)
    shared = share_vit(settings)
    assert shared['backbone'].keys() == {'type', 'arch', 'img_size', 'patch_size', 'with_cp', 'init_cfg'}
    assert shared['decode_head'].keys() == {*segmentor()['decode_head'], 'arch', 'patch_size', 'with_cp'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(in_index=[]), 'takes one output of the backbone or more'),
        (dict(in_channels=[32, 32]), r'in_channels=\(32, 32\)'),
        (dict(num_blocks=0), 'num_blocks=0'),
        (dict(arch=dict(embed_dims=30, num_layers=2, num_heads=3)), 'head width divisible by 4, got 10'),
        (dict(backbone=dict(type='EoMTViT', num_joint_blocks=2)), r'takes a whole ViT.* last 2 blocks .*LateralViT'),
        (dict(patch_size=8), 'patch_size of backbone and decode_head must be equal'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(segmentor(**changes))


@pytest.mark.parametrize(
    ('sides', 'channels', 'message'),
    [
        ((4, 8), (32, 32), r'in_index=\(0, 1\), which have \[\(4, 4\), \(8, 8\)\] positions.* of one stride'),
        ((4, 4), (32, 16), r'output 1 has 16 channels, but PMTHead expects 32'),
    ],
)
def test_maps_that_do_not_go_together_are_refused(sides, channels, message):
    head = PMTHead(5, SMALL_ARCH, in_index=(0, 1), **SIZES)
    with pytest.raises(ValueError, match=message):
        head([torch.randn(1, number, side, side) for side, number in zip(sides, channels)])


def test_another_head_on_the_outputs_with_tokens_is_refused():
    settings = segmentor()
    settings['decode_head'] = dict(type='FCNHead', in_channels=32, in_index=1, channels=8, num_classes=5)
    with pytest.raises(ValueError, match=r'decode_head takes outputs of LateralViT.* for PMTHead'):
        check_outputs(build(settings))


@pytest.mark.slow
@pytest.mark.skipif(Version(torch.__version__) < Version('2.7'), reason='exporting needs PyTorch 2.7')
def test_an_exported_program_gives_the_scores_at_any_size(tmp_path):
    module = ImageToScores(build(dict(segmentor(ROTARY), test_cfg=dict(mode='whole'))).eval())
    save_program(to_program(module), tmp_path / 'model.pt2', module.metadata())
    run = load_program(tmp_path / 'model.pt2')
    for shape in ((1, 3, 64, 64), (2, 3, 48, 80)):
        image = 255 * torch.rand(shape)
        assert relative_error(run(image), module(image)) < 1e-5
