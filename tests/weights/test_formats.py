"""Every public format is recognised, and read and written back without a change."""

import re

import pytest
import torch
from layouts import LAYOUTS, Sizes
from mmseg.models.backbones import VisionTransformer

from mmseg_eomt.weights.checkpoint import FORMATS, from_segmentor, parse_checkpoint, recognise, to_segmentor
from mmseg_eomt.weights.formats import EOMT, HF_EOMT
from mmseg_eomt.weights.key_mapping import UNUSED
from mmseg_eomt.weights.pmt_formats import DECODER

TRANSFORMERS_5 = 'of Hugging Face (transformers 5)'
OURS = re.compile(
    r'cls_token|reg_token|(cls_)?pos_embed|(patch_embed\.proj|norm_pre|norm|class_head)\.(weight|bias)|query_embed\.weight|'
    r'blocks\.\d+\.((norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma)|attn_mask_probs|'
    r'mask_head\.[024]\.(weight|bias)|upscale\.\d\.(conv1\.(weight|bias)|conv2\.weight|norm\.(weight|bias))|'
    r'laterals\.\d\.(norm\.(running_mean|running_var|num_batches_tracked)|(norm|mlp\.fc[12])\.(weight|bias)|scale\.gamma)'
)


def assert_same(given: dict, expected: dict) -> None:
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(given[name], value), name


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('seed', range(6))
def test_a_format_read_and_written_back_is_the_same_in_every_key(layout, seed):
    theirs = LAYOUTS[layout](Sizes(seed))
    known = recognise(theirs)

    ours = known.read(theirs)

    assert known.name == layout.split(':')[0]
    assert all(OURS.fullmatch(name.removeprefix(DECODER)) or name.startswith(UNUSED) for name in ours), sorted(ours)
    assert_same(known.write(ours), theirs)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_one_format_alone_matches(layout):
    theirs = LAYOUTS[layout](Sizes(1))
    assert [known.name for known in FORMATS if known.matches(theirs)] == [layout.split(':')[0]]


def hugging_face(name: str, **config):
    transformers = pytest.importorskip('transformers', '5')
    common = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16)
    return getattr(transformers, f'{name}{config.pop("kind")}')(
        getattr(transformers, f'{name}Config')(**{**common, **config})
    ).eval()


@pytest.mark.parametrize(
    ('name', 'config', 'kind'),
    [
        ('Eomt', dict(num_blocks=1, num_labels=3), 'Hugging Face EoMT (DINOv2)'),
        ('Eomt', dict(num_blocks=1, num_labels=3, use_swiglu_ffn=True), 'Hugging Face EoMT (DINOv2)'),
        ('EomtDinov3', dict(num_blocks=1, num_labels=3, intermediate_size=64), 'Hugging Face EoMT (DINOv3)'),
        ('EomtDinov3', dict(num_blocks=2, num_labels=3, use_gated_mlp=True), 'Hugging Face EoMT (DINOv3)'),
        ('DINOv3ViT', dict(num_register_tokens=4, kind='Model'), f'DINOv3 {TRANSFORMERS_5}'),
        (
            'DINOv3ViT',
            dict(use_gated_mlp=True, num_register_tokens=4, kind='Model'),
            f'DINOv3 {TRANSFORMERS_5}',
        ),
        ('Dinov2', dict(kind='Model'), f'DINOv2 {TRANSFORMERS_5}'),
        ('Dinov2WithRegisters', dict(use_swiglu_ffn=True, kind='Model'), f'DINOv2 {TRANSFORMERS_5}'),
    ],
)
def test_models_of_transformers_are_read_and_written_back_the_same(name, config, kind):
    theirs = hugging_face(name, **{'kind': 'ForUniversalSegmentation', **config}).state_dict()
    known = recognise(theirs)

    assert known.name == kind
    assert_same(known.write(known.read(theirs)), theirs)


def test_packed_gates_of_older_files_are_those_of_newer_ones():
    theirs = hugging_face(
        'Eomt', num_blocks=1, num_labels=3, use_swiglu_ffn=True, kind='ForUniversalSegmentation'
    ).state_dict()
    older = {name: value for name, value in theirs.items() if '.mlp.' not in name}
    for i in range(2):
        for p in ('weight', 'bias'):
            gates = [theirs[f'layers.{i}.mlp.{layer}.{p}'] for layer in ('gate_proj', 'up_proj')]
            older[f'layers.{i}.mlp.weights_in.{p}'] = torch.cat(gates)
            older[f'layers.{i}.mlp.weights_out.{p}'] = theirs[f'layers.{i}.mlp.down_proj.{p}']

    assert_same(HF_EOMT.write(recognise(older).read(older)), theirs)
    assert_same(recognise(older).write(recognise(older).read(older)), older)


@pytest.mark.parametrize('pre_norm', [False, True])
def test_the_vit_of_mmsegmentation_is_read_and_written_back_the_same(pre_norm):
    vit = VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dims=48,
        num_layers=2,
        num_heads=3,
        final_norm=True,
        pre_norm=pre_norm,
        patch_bias=not pre_norm,
    )
    theirs = vit.state_dict()
    known = recognise(theirs)

    assert known.name == 'ViT of MMSegmentation'
    assert_same(known.write(known.read(theirs)), theirs)


@pytest.mark.parametrize('wrapper', ['', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_wrappers_and_prefixes_are_seen_through(wrapper, key):
    theirs = LAYOUTS['ViT of MMPretrain'](Sizes(0))
    wrapped = {f'{wrapper}{name}': value for name, value in theirs.items()}
    if wrapper:
        wrapped[f'{wrapper.removesuffix("backbone.")}head.layers.head.weight'] = torch.zeros(2, 2)
    found = parse_checkpoint({key: wrapped, 'epoch': 3} if key else wrapped, 'a file')

    assert found.kind == 'ViT of MMPretrain'
    assert_same({n: v for n, v in found.weights.items() if 'head' not in n}, recognise(theirs).read(theirs))


def test_a_segmentors_split_of_the_blocks_can_be_changed():
    ours = EOMT.read(LAYOUTS['public EoMT (DINOv2)'](Sizes(0, layers=4, joint=2)))
    kept = {name: value for name, value in ours.items() if not name.startswith(UNUSED)}

    assert_same(from_segmentor(to_segmentor(ours, 2)), kept)
    assert_same(from_segmentor(to_segmentor(ours, 3)), kept)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: dict(a=torch.zeros(1)), r"in no format that is known here: it has \['a'\].*DINOv3 release"),
        (lambda d: [1, 2], 'it has list'),
        (lambda d: d | {'blocks.0.attn.q_norm.weight': torch.zeros(4)}, r'plain ViT of timm.*attn.q_norm.weight'),
    ],
)
def test_what_is_not_understood_is_refused_with_what_it_has(change, message):
    with pytest.raises(ValueError, match=message):
        parse_checkpoint(change(LAYOUTS['plain ViT of timm'](Sizes(0))), 'a file')
