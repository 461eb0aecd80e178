"""The layouts of public PMT checkpoints: a decoder alone, as they are published, or with its encoder.

Under our names the encoder is a ViT as any other, and what the decoder holds begins with ``decoder.``, and then is called as
in :class:`~mmseg_eomt.models.pmt_head.PMTHead`.
"""

from mmseg_eomt.weights.formats import hf_dinov3_blocks, public_dinov3, timm
from mmseg_eomt.weights.key_mapping import Format, Rename, Rule, prefixed, same

DECODER = 'decoder.'
_ENCODER = 'network.encoder.backbone.'
_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def _decoder(gated: bool) -> tuple[Rule, ...]:
    rules = (
        *(Rename(f'laterals.{{i}}.norm.{name}', f'bn.{{i}}.{name}') for name in ('{p}', *_STATISTICS)),
        *prefixed(_without_norms(), 'decoder.'),
    )
    return prefixed(prefixed(rules, 'network.'), DECODER, ('ours',))


def _without_norms() -> tuple[Rule, ...]:
    return (
        Rename('laterals.{i}.mlp.fc1.{p}', 'lateral_projections.{i}.0.{p}'),
        Rename('laterals.{i}.mlp.fc2.{p}', 'lateral_projections.{i}.2.{p}'),
        Rename('laterals.{i}.scale.gamma', 'scalers.{i}'),
        Rename('query_embed.weight', 'q.weight'),
        Rename('norm.{p}', 'decoder_norm.{p}'),
        *hf_dinov3_blocks(False, 'blocks.{i}'),
        *same('class_head.{p}', 'mask_head.{i}.{p}', 'attn_mask_probs'),
        *same('upscale.{i}.conv1.{p}', 'upscale.{i}.conv2.{p}', 'upscale.{i}.norm.{p}'),
    )


def _dinov2(gated: bool) -> tuple[Rule, ...]:
    return prefixed(timm(gated), _ENCODER) + _decoder(gated)


def _dinov3(gated: bool) -> tuple[Rule, ...]:
    fused = Rename('blocks.{i}.attn.qkv.{p}', 'blocks.{i}.attention.qkv_proj.{p}')  # as their training makes them
    return prefixed((*public_dinov3(gated), fused), _ENCODER) + _decoder(gated)


_UNUSED = r'network\.encoder\.pixel_(mean|std)|criterion\.empty_weight|network\.encoder\.backbone\.mask_token'
PMT = Format(
    'public PMT (DINOv2)',
    (f'{_ENCODER}patch_embed.proj.weight', 'network.decoder.q.weight'),
    (),
    _dinov2,
    unused=_UNUSED,
)
PMT_DINOV3 = Format(
    'public PMT (DINOv3)',
    (f'{_ENCODER}patch_embed.patch_embeddings.weight', 'network.decoder.q.weight'),
    (),
    _dinov3,
    gated_by='.gate_proj.',
    unused=_UNUSED,
)
PMT_DECODER = Format(
    'decoder of a public PMT',
    ('network.decoder.q.weight',),
    (_ENCODER,),
    _decoder,
    unused=_UNUSED,
)
PMT_FORMATS = (PMT, PMT_DINOV3, PMT_DECODER)
