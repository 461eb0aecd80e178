"""Weights of a ViT are fitted to the model as timm does, and never half loaded."""

import re
from collections import OrderedDict

import mmengine.runner.checkpoint
import pytest
import torch
from conftest import reference
from layouts import Sizes, dinov3_release, timm_vit
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights import checkpoint as checkpoint_module
from mmseg_eomt.weights.checkpoint import recognise

ARCH = dict(embed_dims=48, num_layers=2, num_heads=3)


@pytest.fixture(scope='module')
def data() -> dict:
    return reference('dinov2_release_to_16.pt')


@pytest.fixture
def release(data, tmp_path):
    """Write a release file, some of its entries changed (None: left out), and return the init_cfg that names it."""

    def write(**changes) -> dict:
        state_dict = {**data['release_state_dict'], **changes}
        path = tmp_path / 'dinov2_pretrain.pth'
        torch.save({name: value for name, value in state_dict.items() if value is not None}, path)
        return dict(type='Pretrained', checkpoint=str(path))

    return write


def test_patch_size_grid_and_names_are_adapted_as_timm_does(data, release):
    model = EoMTViT(ARCH, data['config']['img_size'], num_joint_blocks=0, init_cfg=release())
    model.init_weights()

    own = model.state_dict()
    assert set(own) - {'pos_grid'} == set(data['timm_state_dict'])
    for name, value in data['timm_state_dict'].items():
        assert (own[name] - value).abs().max() < 1e-5, name
    tokens = model(data['image'])[0].flatten(2).transpose(1, 2)
    assert (tokens - data['tokens_after_norm'][:, 5:]).abs().max() < 1e-5


def test_a_release_file_read_and_written_back_is_the_same(data):
    release = data['release_state_dict']
    known = recognise(release)
    back = known.write(known.read(release))
    assert back.keys() == release.keys() and all(torch.equal(back[name], value) for name, value in release.items())


def test_backbone_and_head_take_their_blocks_from_one_file(data, release):
    init_cfg = release()
    backbone = EoMTViT(ARCH, (64, 96), num_joint_blocks=1, init_cfg=init_cfg)
    head = EoMTHead(19, ARCH, num_joint_blocks=1, init_cfg=init_cfg)
    queries = head.query_embed.weight.clone()
    for module in (backbone, head):
        module.init_weights()

    weights = data['release_state_dict']
    assert torch.equal(backbone.blocks[0].attn.qkv.weight, weights['blocks.0.attn.qkv.weight'])
    assert torch.equal(head.blocks[0].attn.qkv.weight, weights['blocks.1.attn.qkv.weight'])
    assert torch.equal(head.norm.weight, weights['norm.weight'])
    assert torch.equal(head.query_embed.weight, queries)


def test_a_release_without_registers_loads(release):
    model = EoMTViT(ARCH, 64, num_register_tokens=0, num_joint_blocks=0, init_cfg=release(register_tokens=None))
    model.init_weights()
    assert model(torch.randn(1, 3, 64, 64))[0].shape == (1, 48, 4, 4)


def test_gated_mlps_are_renamed(data, release):
    changes = {}
    for i in range(2):
        changes.update({f'blocks.{i}.mlp.{layer}.{kind}': None for layer in ('fc1', 'fc2') for kind in ('weight', 'bias')})
        changes[f'blocks.{i}.mlp.w12.weight'], changes[f'blocks.{i}.mlp.w12.bias'] = torch.randn(64, 48), torch.randn(64)
        changes[f'blocks.{i}.mlp.w3.weight'], changes[f'blocks.{i}.mlp.w3.bias'] = torch.randn(48, 32), torch.randn(48)
    arch = dict(**ARCH, mlp='swiglu', mlp_hidden_dims=32)
    model = EoMTViT(arch, 64, num_joint_blocks=0, init_cfg=release(**changes))
    model.init_weights()

    block, x = model.blocks[1].mlp, torch.randn(3, 48)
    gate, value = (x @ changes['blocks.1.mlp.w12.weight'].T + changes['blocks.1.mlp.w12.bias']).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * value
    expected = hidden @ changes['blocks.1.mlp.w3.weight'].T + changes['blocks.1.mlp.w3.bias']
    assert torch.allclose(block(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ('changes', 'arch', 'message'),
    [
        ({}, dict(ARCH, num_layers=3), 'num_layers=2, but arch asks for num_layers=3'),
        (
            {},
            dict(ARCH, embed_dims=96),
            'embed_dims=48, mlp_hidden_dims=192, but arch asks for embed_dims=96, mlp_hidden_dims=384',
        ),
        ({}, dict(ARCH, mlp='swiglu'), "mlp='gelu', but arch asks for mlp='swiglu'"),
        ({}, dict(ARCH, layer_scale_init=None), 'layer_scale_init=a number, but arch asks for layer_scale_init=None'),
        ({}, dict(ARCH, rope_theta=100.0), 'rope_theta=None, but arch asks for rope_theta=a number'),
        ({}, dict(ARCH, class_token=False), 'class_token=True, but arch asks for class_token=False'),
        ({}, dict(ARCH, qkv_bias='qv'), r"has a bias for \['k'\], and qkv_bias of arch is 'qv'"),
        (dict(register_tokens=None), ARCH, '0 register tokens, but num_register_tokens is 4'),
        (dict(pos_embed=None), ARCH, 'in no format that is known'),
        ({'blocks.1.norm1.bias': None}, ARCH, r'\(DINOv2 release\) lacks 1 weights: blocks.1.norm1.bias'),
        (
            {'blocks.0.mlp.fc2.weight': None, 'blocks.1.mlp.fc2.weight': None},
            ARCH,
            r'lacks 2 weights: blocks.0.mlp.fc2.weight, ',
        ),
        (
            {'patch_embed.proj.bias': None},
            ARCH,
            r'1 missing.*\s+patch_embed.proj.bias: checkpoint absent, model \(48,\)',
        ),
        ({'blocks.1.norm1.bias': torch.zeros(7)}, ARCH, r'blocks.1.norm1.bias: checkpoint \(7,\), model \(48,\)'),
        ({'blocks.1.attn.q_bias': torch.zeros(48)}, ARCH, r'DINOv2 release.*blocks.1.attn.q_bias'),
        (dict(pos_embed=torch.zeros(1, 8, 48)), ARCH, 'position embedding for 7 patches, no square'),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_difference(release, changes, arch, message):
    model = EoMTViT(arch, 64, num_joint_blocks=0, init_cfg=release(**changes))
    with pytest.raises(ValueError, match=message):
        model.init_weights()


def test_an_arch_that_fits_is_named(release):
    vit = timm_vit(Sizes(0, dims=384, heads=6, layers=12, hidden=1536, gated=False, registers=0, scales=False))
    model = EoMTViT(ARCH, 64, num_register_tokens=0, num_joint_blocks=0, init_cfg=release())
    torch.save(vit, model.init_cfg['checkpoint'])
    with pytest.raises(ValueError, match=r"embed_dims=384, .* but arch asks for embed_dims=48, .*: arch='vit_small' fits"):
        model.init_weights()


def test_rotary_periods_of_a_file_tell_wrong_heads_and_another_base(tmp_path):
    torch.save(dinov3_release(Sizes(0, dims=48, heads=3, layers=2, gated=False, hidden=192)), tmp_path / 'dinov3.pth')
    arch = dict(ARCH, rope_theta=100.0, qkv_bias='qv', norm_eps=1e-5)
    for wrong, told in ((dict(num_heads=6), '4 rotary periods'), (dict(rope_theta=10000.0), 'rope_theta=10000')):
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'dinov3.pth'))
        model = EoMTViT({**arch, **wrong}, 64, 4, num_joint_blocks=0, init_cfg=init_cfg)
        with pytest.raises(ValueError, match=told):
            model.init_weights()
    EoMTViT(arch, 64, 4, num_joint_blocks=0, init_cfg=init_cfg).init_weights()


def test_init_cfg_takes_the_part_that_prefix_names_and_refuses_one_that_is_not_there(release, tmp_path):
    init_cfg = release()
    weights = torch.load(init_cfg['checkpoint'], weights_only=True)
    torch.save({f'student.{name}': value for name, value in weights.items()}, tmp_path / 'student.pth')
    models = [
        EoMTViT(ARCH, 64, num_joint_blocks=1, init_cfg=cfg)
        for cfg in (init_cfg, dict(init_cfg, checkpoint=str(tmp_path / 'student.pth'), prefix='student'))
    ]
    for model in models:
        model.init_weights()
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"dinov2_pretrain\.pth: No weights begin with 'backbone'"):
        EoMTViT(ARCH, 64, num_joint_blocks=1, init_cfg=dict(init_cfg, prefix='backbone')).init_weights()


def test_the_log_tells_what_was_loaded_adapted_left_out_and_made(release, capsys):
    MMLogger.get_instance('weights')  # writes to the output that this test sees
    EoMTViT(ARCH, 64, 16, num_joint_blocks=1, init_cfg=release()).init_weights()
    EoMTHead(19, ARCH, num_joint_blocks=1, init_cfg=release()).init_weights()
    lines = [re.sub(r'\S+/dinov2_pretrain.pth', 'FILE', line).strip() for line in capsys.readouterr().out.splitlines()]
    told = [re.sub(r'^.*INFO - ', '', line) for line in lines]
    tables = [told[i : i + 5] for i, line in enumerate(told) if line.startswith('EoMT') and 'FILE' in line]

    assert tables == [
        [
            'EoMTViT: FILE (DINOv2 release)',
            'loaded                19 tensors, blocks 0 to 0 of 2',
            'adapted               patches 14 → 16 pixels; positions 37×37 → 4×4',
            'ignored               mask_token',
            'randomly initialised  nothing',
        ],
        [
            'EoMTHead: FILE (DINOv2 release)',
            'loaded                16 tensors, blocks 1 to 1 of 2',
            'adapted               nothing',
            'ignored               mask_token',
            'randomly initialised  query_embed; class_head; mask_head; upscale',
        ],
    ]


def test_a_format_is_recognised_once_and_again_where_names_change_on_the_way(release, monkeypatch):
    given = CheckpointLoader.load_checkpoint(release()['checkpoint'], map_location='cpu')['state_dict']
    looked = []
    monkeypatch.setattr(checkpoint_module, 'recognise', lambda tensors: looked.append(1) or recognise(tensors))
    for part in (EoMTViT(ARCH, 64, num_joint_blocks=1), EoMTHead(19, ARCH, num_joint_blocks=1)):
        mmengine.runner.checkpoint.load_state_dict(part, given)
    assert not looked, 'it was recognised when the file was read'

    renamed = OrderedDict((f'backbone.{name}', value) for name, value in given.items())
    renamed._metadata = given._metadata
    model = EoMTViT(ARCH, 64, num_joint_blocks=1)
    mmengine.runner.checkpoint.load_state_dict(model, renamed)
    assert looked
    torch.testing.assert_close(model.patch_embed.proj.bias, given['patch_embed.proj.bias'], rtol=0, atol=0)
