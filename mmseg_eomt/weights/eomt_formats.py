"""The layouts of public EoMT checkpoints: the authors' and Hugging Face's."""

from collections.abc import Callable

from mmseg_eomt.weights.format import Format, blocks, mlp, same, separate_qkv
from mmseg_eomt.weights.rules import Positions, Rename, Rule, prefixed
from mmseg_eomt.weights.vit_formats import FC, PACKED, hf_dinov3_blocks, timm


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


def _public_eomt_dinov3(gated: bool) -> tuple[Rule, ...]:
    vit = (
        Rename('cls_token', 'patch_embed.cls_token'),
        Rename('reg_token', 'patch_embed.register_tokens'),
        Rename('patch_embed.proj.{p}', 'patch_embed.patch_embeddings.{p}'),
        Rename('norm.{p}', 'norm.{p}'),
        *hf_dinov3_blocks(gated, 'blocks.{i}'),
    )
    return prefixed(vit, 'network.encoder.backbone.') + _public_heads()


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
