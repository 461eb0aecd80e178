"""Hugging Face's EoMT and ours give the same logits, after conversion either way."""

import pytest
import torch
from conftest import relative_error

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.checkpoint import from_segmentor, parse_checkpoint, recognise, to_segmentor
from mmseg_eomt.weights.fit import Target, fit, part_of_vit

transformers = pytest.importorskip('transformers')

TOLERANCE = 1e-4
SIZES = [(64, 64), (96, 96), (32, 128), (64, 144)]  # of as many patches as a square, for the learned positions
LAYERS, HEADS = 3, 3
ARCH = dict(embed_dims=48, num_layers=LAYERS, num_heads=HEADS)
DINOV3 = dict(rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv')
KINDS = {
    'DINOv2': ('Eomt', {}, dict(norm_eps=1e-6)),
    'DINOv2, gated': ('Eomt', dict(use_swiglu_ffn=True), dict(mlp='swiglu', mlp_hidden_dims=128)),
    'DINOv3': (
        'EomtDinov3',
        dict(layer_norm_eps=1e-5, intermediate_size=96),
        dict(norm_eps=1e-5, mlp_hidden_dims=96, **DINOV3),
    ),
}
VITS = {
    'DINOv3ViT': (
        dict(num_register_tokens=4, intermediate_size=64, use_gated_mlp=True, hidden_act='silu'),
        dict(mlp='swiglu', mlp_hidden_dims=64, norm_eps=1e-5, **DINOV3),
    ),
    'DINOv3ViT, without biases': (
        dict(num_register_tokens=4, intermediate_size=96, query_bias=False, value_bias=False),
        dict(mlp_hidden_dims=96, norm_eps=1e-5, **{**DINOV3, 'qkv_bias': ''}),
    ),
    'Dinov2': (dict(use_swiglu_ffn=True), dict(mlp='swiglu', mlp_hidden_dims=128)),
    'Dinov2WithRegisters': ({}, {}),
}


def theirs(kind: str, size: tuple[int, int], joint: int):
    """A random model of transformers; it knows square images alone, and is told the grid of others."""
    family, config, _ = KINDS[kind]
    grid = (size[0] // 16, size[1] // 16)
    side = round((grid[0] * grid[1]) ** 0.5)
    config = dict(num_blocks=joint, num_labels=5, num_queries=7, image_size=16 * side, **config)
    config |= dict(hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    model = getattr(transformers, f'{family}ForUniversalSegmentation')(getattr(transformers, f'{family}Config')(**config))
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.grid_size = grid
    model.attn_mask_probs.zero_()  # as after training: no masks in evaluation
    return model.eval()


def ours(kind: str, size: tuple[int, int], joint: int) -> tuple[EoMTViT, EoMTHead]:
    arch = dict(ARCH, **KINDS[kind][2])
    return (
        EoMTViT(arch, size, num_joint_blocks=joint).eval(),
        EoMTHead(5, arch, num_joint_blocks=joint, num_queries=7).eval(),
    )


def assert_equal(hugging_face, vit: EoMTViT, head: EoMTHead, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = hugging_face(image)
        masks, classes = head(vit(image))
    assert relative_error(masks[-1], expected.masks_queries_logits) < TOLERANCE
    assert relative_error(classes[-1], expected.class_queries_logits) < TOLERANCE


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', KINDS)
def test_their_weights_give_their_logits_in_our_model(kind, size):
    model = theirs(kind, size, joint=2)
    vit, head = ours(kind, size, joint=2)

    split = to_segmentor(parse_checkpoint(model.state_dict(), 'theirs').weights, 2)
    for module, part in ((vit, 'backbone.'), (head, 'decode_head.')):
        module.load_state_dict({n.removeprefix(part): v for n, v in split.items() if n.startswith(part)})

    assert_equal(model, vit, head, size)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', KINDS)
def test_our_weights_give_our_logits_in_their_model(kind, size):
    vit, head = ours(kind, size, joint=1)
    for parameter in (*vit.parameters(), *head.parameters()):
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    for block in (*vit.blocks, *head.blocks):
        if vit.arch.qkv_bias == 'qv':
            block.attn.qkv.bias.data.chunk(3)[1].zero_()
    model = theirs(kind, size, joint=1)

    own = {f'backbone.{name}': value for name, value in vit.state_dict().items()}
    own |= {f'decode_head.{name}': value for name, value in head.state_dict().items()}
    converted = recognise(model.state_dict()).write(from_segmentor(own))
    converted['attn_mask_probs'].zero_()
    missing, unexpected = model.load_state_dict(converted, strict=False)

    assert (missing, unexpected) == (['criterion.empty_weight'], [])  # of their loss, a constant
    assert_equal(model, vit, head, size)


@pytest.mark.parametrize('size', [(64, 64), (96, 48), (32, 112)])
@pytest.mark.parametrize('kind', VITS)
def test_their_vits_tokens_are_ours(kind, size):
    config, arch = VITS[kind]
    family = kind.split(',')[0]
    config = dict(config, hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=64, patch_size=16)
    model = getattr(transformers, f'{family}Model')(getattr(transformers, f'{family}Config')(**config)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    registers = 0 if family == 'Dinov2' else 4
    vit = EoMTViT(dict(ARCH, **arch), 64, num_register_tokens=registers, num_joint_blocks=0).eval()

    filled, _ = fit(
        parse_checkpoint(model.state_dict(), 'theirs'), Target('ours', vit.arch, part_of_vit(vit), vit.grid_size), True
    )
    vit.load_state_dict(filled)
    if vit.pos_embed is not None:
        size = (64, 64)  # they interpolate learned positions otherwise than timm and the authors of EoMT
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(image).last_hidden_state[:, 1 + registers :]
        given = vit(image)[0].flatten(2).transpose(1, 2)
    assert relative_error(given, expected) < TOLERANCE


def as_timm(weights: dict, names: dict[str, str], block: str, layers: dict[str, str], qkv: str) -> dict:
    """A vision tower of transformers under timm's names, the position embedding batched."""
    out = {}
    for theirs, ours in names.items():
        for suffix in ('', '.weight', '.bias'):
            if f'{theirs}{suffix}' in weights:
                out[f'{ours}{suffix}'] = weights[f'{theirs}{suffix}']
    for i in range(LAYERS):
        for kind in ('weight', 'bias'):
            parts = [weights[f'{block}.{i}.{qkv}.{part}_proj.{kind}'] for part in 'qkv']
            out[f'blocks.{i}.attn.qkv.{kind}'] = torch.cat(parts)
            for theirs, ours in layers.items():
                out[f'blocks.{i}.{ours}.{kind}'] = weights[f'{block}.{i}.{theirs}.{kind}']
    return out


@pytest.mark.parametrize(
    ('family', 'arch'),
    [
        ('CLIP', dict(mlp='quick_gelu', norm_eps=1e-5, pre_norm=True)),
        ('Siglip', dict(mlp='gelu_tanh', norm_eps=1e-6, class_token=False)),
    ],
)
def test_image_towers_compute_what_their_publishers_do(family, arch):
    config = dict(hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=64, patch_size=16)
    config = getattr(transformers, f'{family}VisionConfig')(**config, intermediate_size=192)
    model = getattr(transformers, f'{family}VisionModel')(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    weights = {name.removeprefix('vision_model.'): value for name, value in model.state_dict().items()}
    names = {'embeddings.patch_embedding': 'patch_embed.proj', 'post_layernorm': 'norm', 'pre_layrnorm': 'norm_pre'}
    layers = {'self_attn.out_proj': 'attn.proj', 'layer_norm1': 'norm1', 'layer_norm2': 'norm2'}
    layers |= {'mlp.fc1': 'mlp.fc1', 'mlp.fc2': 'mlp.fc2'}
    content = as_timm(weights, names, 'encoder.layers', layers, 'self_attn')
    content['pos_embed'] = weights['embeddings.position_embedding.weight'][None]
    if family == 'CLIP':
        content['cls_token'] = weights['embeddings.class_embedding'].view(1, 1, -1)
    vit = EoMTViT(dict(ARCH, layer_scale_init=None, **arch), 64, num_register_tokens=0, num_joint_blocks=0).eval()

    found = parse_checkpoint(content, 'theirs')
    filled, _ = fit(found, Target('ours', vit.arch, part_of_vit(vit), vit.grid_size), training=True)
    vit.load_state_dict(filled, strict=False)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model(image).last_hidden_state  # CLIP's are not normalised yet, but for the class token's output
        expected = vit.norm(tokens[:, 1:]) if family == 'CLIP' else tokens
        given = vit(image)[0].flatten(2).transpose(1, 2)
    assert found.kind == 'plain ViT of timm'
    assert relative_error(given, expected) < TOLERANCE


def test_a_gated_eomt_on_dinov3_is_refused():
    config = transformers.EomtDinov3Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, num_blocks=1, use_gated_mlp=True
    )
    with pytest.raises(ValueError, match='one activation for gates and heads'):
        parse_checkpoint(transformers.EomtDinov3ForUniversalSegmentation(config).state_dict(), 'theirs')


def test_rotary_positions_are_rescaled_at_random_in_training_and_alike_in_all_blocks():
    arch = dict(ARCH, layer_scale_init=1.0, **DINOV3)
    vit, head = EoMTViT(arch, 64, num_joint_blocks=1), EoMTHead(5, arch, num_joint_blocks=1, num_queries=7).eval()
    image = torch.randn(1, 3, 64, 64)
    vit.train()
    with torch.no_grad():
        (first,), (second,) = vit(image), vit(image)

    assert not torch.equal(first[2], second[2])
    assert not torch.allclose(first[0], second[0])
    for _ in range(20):
        rope = vit(image)[0][2]
        angle = torch.atan2(rope[1, 0, 0], rope[0, 0, 0]).abs()  # of the first row's slowest, 2π · 0.75 · factor
        factor = [(angle + 2 * torch.pi * turn) / (2 * torch.pi * 0.75) for turn in range(3)]
        factor += [(2 * torch.pi * turn - angle) / (2 * torch.pi * 0.75) for turn in range(1, 3)]
        assert any(0.499 < value < 2.001 for value in factor)
    vit.eval()
    assert torch.equal(vit(image)[0][2], vit(image)[0][2])
    assert len(vit(image)[0]) == 3 and head(vit(image))[0][0].shape == (1, 7, 16, 16)
