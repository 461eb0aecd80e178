"""The layouts of public ViT and EoMT checkpoints."""

from collections.abc import Callable

from mmseg_eomt.weights.key_mapping import (
    Concat,
    Format,
    MaskedBias,
    Positions,
    Rename,
    Rule,
    blocks,
    mlp,
    prefixed,
    same,
    separate_qkv,
)

_FUSED = same('blocks.{i}.attn.qkv.{p}', 'blocks.{i}.attn.proj.{p}')
_TOKENS = same('cls_token', 'patch_embed.proj.{p}', 'norm.{p}')


def timm(gated: bool) -> tuple[Rule, ...]:
    """Rules for timm's ViTs, whose gated MLPs are packed into one layer as ours are."""
    return (
        *_TOKENS,
        *same('reg_token', 'norm_pre.{p}'),
        Positions('pos_embed', None),
        *blocks('blocks.{i}'),
        *_FUSED,
        *same('blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc2.{p}'),
    )


def _own_vit(gated: bool) -> tuple[Rule, ...]:
    return (
        *_TOKENS,
        *same('reg_token', 'norm_pre.{p}', 'pos_embed', 'pos_grid'),
        *blocks('blocks.{i}'),
        *_FUSED,
        *same('blocks.{i}.mlp.fc1.{p}', 'blocks.{i}.mlp.fc2.{p}'),
    )


def _dinov2(gated: bool) -> tuple[Rule, ...]:
    return (
        *_TOKENS,
        Rename('reg_token', 'register_tokens'),
        Positions('pos_embed', class_first=True),
        *blocks('blocks.{i}'),
        *_FUSED,
        *mlp('blocks.{i}.mlp', ('fc1', 'fc2'), gated, gate='w12', out='w3'),
    )


def _dinov3(gated: bool) -> tuple[Rule, ...]:
    qkv = 'blocks.{i}.attn.qkv'
    return (
        *_TOKENS,
        Rename('reg_token', 'storage_tokens'),
        *blocks('blocks.{i}'),
        MaskedBias(f'{qkv}.bias', f'{qkv}.bias', f'{qkv}.bias_mask'),
        *_FUSED,
        *mlp('blocks.{i}.mlp', ('fc1', 'fc2'), gated, gate='w1', value='w2', out='w3'),
    )


def _timm_dinov3(gated: bool) -> tuple[Rule, ...]:
    attn = 'blocks.{i}.attn'
    return (
        *_TOKENS,
        *same('reg_token'),
        *blocks('blocks.{i}', ls1='gamma_1', ls2='gamma_2'),
        Concat(f'{attn}.qkv.bias', (f'{attn}.q_bias', None, f'{attn}.v_bias')),
        *_FUSED,
        *mlp('blocks.{i}.mlp', ('fc1', 'fc2'), gated, gate='fc1_g', value='fc1_x', out='fc2'),
    )


def hf_dinov3_blocks(gated: bool, theirs: str) -> tuple[Rule, ...]:
    """Rules for the blocks of Hugging Face's DINOv3, called ``theirs`` with ``{i}`` for the number."""
    return (
        *blocks(theirs, ls1='layer_scale1.lambda1', ls2='layer_scale2.lambda1'),
        *separate_qkv(f'{theirs}.attention', 'q_proj', 'k_proj', 'v_proj', key_bias=False),
        Rename('blocks.{i}.attn.proj.{p}', f'{theirs}.attention.o_proj.{{p}}'),
        *mlp(f'{theirs}.mlp', ('up_proj', 'down_proj'), gated, gate='gate_proj', value='up_proj', out='down_proj'),
    )


def _hf_dinov3(theirs: str) -> Callable[[bool], tuple[Rule, ...]]:
    return lambda gated: (
        Rename('cls_token', 'embeddings.cls_token'),
        Rename('reg_token', 'embeddings.register_tokens'),
        Rename('patch_embed.proj.{p}', 'embeddings.patch_embeddings.{p}'),
        Rename('norm.{p}', 'norm.{p}'),
        *hf_dinov3_blocks(gated, theirs),
    )


def _hf_dinov2(qkv: tuple[str, str, str], proj: str, **gated_names: str) -> Callable[[bool], tuple[Rule, ...]]:
    theirs = 'encoder.layer.{i}'
    return lambda gated: (
        Rename('cls_token', 'embeddings.cls_token'),
        Rename('reg_token', 'embeddings.register_tokens'),
        Rename('patch_embed.proj.{p}', 'embeddings.patch_embeddings.projection.{p}'),
        Positions('embeddings.position_embeddings', class_first=True),
        Rename('norm.{p}', 'layernorm.{p}'),
        *blocks(theirs, ls1='layer_scale1.lambda1', ls2='layer_scale2.lambda1'),
        *separate_qkv(f'{theirs}.attention', *qkv),
        Rename('blocks.{i}.attn.proj.{p}', f'{theirs}.attention.{proj}.{{p}}'),
        *mlp(f'{theirs}.mlp', ('fc1', 'fc2'), gated, **gated_names),
    )


def _mmseg_vit(gated: bool) -> tuple[Rule, ...]:
    attn = 'layers.{i}.attn.attn'
    return (
        *same('cls_token'),
        Rename('patch_embed.proj.{p}', 'patch_embed.projection.{p}'),
        Rename('norm_pre.{p}', 'ln_pre.{p}'),
        Positions('pos_embed', class_first=True),
        *blocks('layers.{i}', norm1='ln1', norm2='ln2'),
        Rename('blocks.{i}.attn.qkv.weight', f'{attn}.in_proj_weight'),
        Rename('blocks.{i}.attn.qkv.bias', f'{attn}.in_proj_bias'),
        Rename('blocks.{i}.attn.proj.{p}', f'{attn}.out_proj.{{p}}'),
        *mlp('layers.{i}.ffn.layers', ('0.0', '1'), gated=False),
        Rename('norm.{p}', 'ln1.{p}'),
    )


def _mmpretrain_vit(gated: bool) -> tuple[Rule, ...]:
    ffn = 'w12' if gated else 'layers.0.0'
    return (
        *same('cls_token'),
        Rename('patch_embed.proj.{p}', 'patch_embed.projection.{p}'),
        Rename('norm_pre.{p}', 'pre_norm.{p}'),
        Positions('pos_embed', None),
        *blocks('layers.{i}', norm1='ln1', norm2='ln2', ls1='attn.gamma1.weight', ls2='ffn.gamma2.weight'),
        Rename('blocks.{i}.attn.qkv.{p}', 'layers.{i}.attn.qkv.{p}'),
        Rename('blocks.{i}.attn.proj.{p}', 'layers.{i}.attn.proj.{p}'),
        Rename('blocks.{i}.mlp.fc1.{p}', f'layers.{{i}}.ffn.{ffn}.{{p}}'),
        Rename('blocks.{i}.mlp.fc2.{p}', f'layers.{{i}}.ffn.{"w3" if gated else "layers.1"}.{{p}}'),
        Rename('norm.{p}', 'ln1.{p}'),
    )


FC = dict(gate='gate_proj', value='up_proj', out='down_proj')
PACKED = dict(gate='weights_in', out='weights_out')
_HEADS = r'(head|head_dist|fc_norm|attn_pool|pre_logits|decoder_\w+|heads?)\..*|mask_token|decoder_pos_embed'
_MASK_TOKEN = r'embeddings\.mask_token'
OWN_VITS = (
    Format(
        'backbone of mmseg-eomt',
        ('pos_grid', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
        (),
        _own_vit,
    ),
    Format(
        'rotary backbone of mmseg-eomt',
        ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
        ('pos_embed', 'storage_tokens', 'register_tokens', 'mask_token', 'blocks.0.gamma_1'),
        _own_vit,
    ),
)
VIT_FORMATS = (
    *OWN_VITS,
    Format(
        'DINOv3 release',
        ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight', 'storage_tokens'),
        ('pos_embed',),
        _dinov3,
        gated_by='.mlp.w1.',
        unused=r'mask_token|rope_embed\.periods|local_cls_norm\.(weight|bias)',
    ),
    Format(
        'DINOv3 of timm',
        ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight', 'blocks.0.gamma_1'),
        ('pos_embed',),
        _timm_dinov3,
        gated_by='.fc1_g.',
        unused=_HEADS,
    ),
    Format(
        'DINOv3 of Hugging Face',
        ('embeddings.patch_embeddings.weight', 'layer.0.attention.q_proj.weight'),
        (),
        _hf_dinov3('layer.{i}'),
        gated_by='.gate_proj.',
        unused=_MASK_TOKEN,
    ),
    Format(
        'DINOv3 of Hugging Face (transformers 5)',
        ('embeddings.patch_embeddings.weight', 'model.layer.0.attention.q_proj.weight'),
        (),
        _hf_dinov3('model.layer.{i}'),
        gated_by='.gate_proj.',
        unused=_MASK_TOKEN,
    ),
    Format(
        'DINOv2 of Hugging Face',
        ('embeddings.position_embeddings', 'encoder.layer.0.attention.attention.query.weight'),
        (),
        _hf_dinov2(('attention.query', 'attention.key', 'attention.value'), 'output.dense', **PACKED),
        gated_by='.weights_in.',
        unused=_MASK_TOKEN,
    ),
    Format(
        'DINOv2 of Hugging Face (transformers 5)',
        ('embeddings.position_embeddings', 'encoder.layer.0.attention.q_proj.weight'),
        (),
        _hf_dinov2(('q_proj', 'k_proj', 'v_proj'), 'o_proj', **FC),
        gated_by='.gate_proj.',
        unused=_MASK_TOKEN,
    ),
    Format(
        'DINOv2 release',
        (
            'cls_token',
            'pos_embed',
            'mask_token',
            'patch_embed.proj.weight',
            'blocks.0.attn.qkv.weight',
            'blocks.0.ls1.gamma',
        ),
        ('decoder_', 'reg_token'),
        _dinov2,
        gated_by='.mlp.w12.',
        unused='mask_token',
    ),
    Format(
        'plain ViT of timm',
        ('pos_embed', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
        ('register_tokens', 'pos_grid'),
        timm,
        unused=_HEADS,
    ),
    Format(
        'ViT of MMSegmentation',
        ('pos_embed', 'patch_embed.projection.weight', 'layers.0.attn.attn.in_proj_weight'),
        (),
        _mmseg_vit,
        unused=_HEADS,
    ),
    Format(
        'ViT of MMPretrain',
        ('pos_embed', 'patch_embed.projection.weight', 'layers.0.attn.qkv.weight'),
        (),
        _mmpretrain_vit,
        gated_by='.ffn.w12.',
        unused=_HEADS,
    ),
)


def _public_heads() -> tuple[Rule, ...]:
    return prefixed(
        (
            Rename('query_embed.weight', 'q.weight'),
            *same('class_head.{p}', 'mask_head.{i}.{p}', 'attn_mask_probs'),
            *same('upscale.{i}.conv1.{p}', 'upscale.{i}.conv2.{p}', 'upscale.{i}.norm.{p}'),
        ),
        'network.',
    )


def _public_eomt(gated: bool) -> tuple[Rule, ...]:
    return prefixed(timm(gated), 'network.encoder.backbone.') + _public_heads()


def public_dinov3(gated: bool) -> tuple[Rule, ...]:
    """Rules for the DINOv3 inside the authors' models."""
    return (
        Rename('cls_token', 'patch_embed.cls_token'),
        Rename('reg_token', 'patch_embed.register_tokens'),
        Rename('patch_embed.proj.{p}', 'patch_embed.patch_embeddings.{p}'),
        Rename('norm.{p}', 'norm.{p}'),
        *hf_dinov3_blocks(gated, 'blocks.{i}'),
    )


def _public_eomt_dinov3(gated: bool) -> tuple[Rule, ...]:
    return prefixed(public_dinov3(gated), 'network.encoder.backbone.') + _public_heads()


def _hf_heads() -> tuple[Rule, ...]:
    return (
        Rename('query_embed.weight', 'query.weight'),
        Rename('class_head.{p}', 'class_predictor.{p}'),
        *(Rename(f'mask_head.{2 * i}.{{p}}', f'mask_head.fc{i + 1}.{{p}}') for i in range(3)),
        Rename('upscale.{i}.conv1.{p}', 'upscale_block.block.{i}.conv1.{p}'),
        Rename('upscale.{i}.conv2.{p}', 'upscale_block.block.{i}.conv2.{p}'),
        Rename('upscale.{i}.norm.{p}', 'upscale_block.block.{i}.layernorm2d.{p}'),
        *same('attn_mask_probs'),
        Rename('norm.{p}', 'layernorm.{p}'),
        Rename('cls_token', 'embeddings.cls_token'),
        Rename('reg_token', 'embeddings.register_tokens'),
    )


def _hf_eomt(**gated_names: str) -> Callable[[bool], tuple[Rule, ...]]:
    return lambda gated: (
        *_hf_heads(),
        Rename('patch_embed.proj.{p}', 'embeddings.patch_embeddings.projection.{p}'),
        Positions('embeddings.position_embeddings.weight', class_first=False, batched=False),
        *blocks('layers.{i}', ls1='layer_scale1.lambda1', ls2='layer_scale2.lambda1'),
        *separate_qkv('layers.{i}.attention', 'q_proj', 'k_proj', 'v_proj'),
        Rename('blocks.{i}.attn.proj.{p}', 'layers.{i}.attention.out_proj.{p}'),
        *mlp('layers.{i}.mlp', ('fc1', 'fc2'), gated, **gated_names),
    )


def _hf_eomt_dinov3(gated: bool) -> tuple[Rule, ...]:
    return (
        *_hf_heads(),
        Rename('patch_embed.proj.{p}', 'embeddings.patch_embeddings.{p}'),
        *hf_dinov3_blocks(gated, 'layers.{i}'),
    )


_PUBLIC = 'network.encoder.backbone'
_PUBLIC_UNUSED = r'network\.encoder\.pixel_(mean|std)|criterion\.empty_weight|network\.encoder\.backbone\.mask_token'
EOMT = Format(
    'public EoMT (DINOv2)',
    (f'{_PUBLIC}.patch_embed.proj.weight', 'network.q.weight'),
    (),
    _public_eomt,
    unused=_PUBLIC_UNUSED,
    is_eomt=True,
)
EOMT_DINOV3 = Format(
    'public EoMT (DINOv3)',
    (f'{_PUBLIC}.patch_embed.patch_embeddings.weight', 'network.q.weight'),
    (),
    _public_eomt_dinov3,
    gated_by='.gate_proj.',
    unused=_PUBLIC_UNUSED,
    is_eomt=True,
)
HF_EOMT = Format(
    'Hugging Face EoMT (DINOv2)',
    ('embeddings.patch_embeddings.projection.weight', 'query.weight'),
    ('layers.0.mlp.weights_in',),
    _hf_eomt(**FC),
    gated_by='.gate_proj.',
    unused=r'criterion\.empty_weight',
    is_eomt=True,
)
HF_EOMT_DINOV3 = Format(
    'Hugging Face EoMT (DINOv3)',
    ('embeddings.patch_embeddings.weight', 'query.weight'),
    (),
    _hf_eomt_dinov3,
    gated_by='.gate_proj.',
    unused=r'criterion\.empty_weight|embeddings\.mask_token',
    is_eomt=True,
)
HF_EOMT_PACKED = Format(
    'Hugging Face EoMT (DINOv2, packed gates)',
    ('embeddings.patch_embeddings.projection.weight', 'query.weight', 'layers.0.mlp.weights_in.weight'),
    (),
    _hf_eomt(**PACKED),
    gated_by='.weights_in.',
    unused=r'criterion\.empty_weight',
    is_eomt=True,
)
EOMT_FORMATS = (EOMT, EOMT_DINOV3, HF_EOMT, HF_EOMT_PACKED, HF_EOMT_DINOV3)
