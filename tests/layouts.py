"""Small random files in the exact layouts that are published; the names are the publishers' own."""

import copy

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def draw(generator: torch.Generator, **shapes: tuple[int, ...]) -> StateDict:
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class Sizes:
    """A random architecture."""

    def __init__(self, seed: int, **fixed) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.heads = fixed.get('heads', self._from(1, 4))
        self.dims = fixed.get('dims', 8 * self.heads * self._from(1, 3))
        self.layers = fixed.get('layers', self._from(1, 5))
        self.gated = fixed.get('gated', bool(self._from(0, 2)))
        self.hidden = fixed.get('hidden', 8 * self._from(1, 9))
        self.registers = fixed.get('registers', self._from(0, 5))
        self.scales = fixed.get('scales', bool(self._from(0, 2)))
        self.grid = fixed.get('grid', self._from(2, 6))
        self.patch = fixed.get('patch', 4)
        self.queries = fixed.get('queries', self._from(2, 9))
        self.classes = fixed.get('classes', self._from(2, 9))
        self.joint = fixed.get('joint', self._from(1, self.layers + 1))
        self.levels = fixed.get('levels', 3)  # outputs that a PMT takes

    def _from(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.generator))

    def draw(self, **shapes: tuple[int, ...]) -> StateDict:
        return draw(self.generator, **shapes)

    def pair(self, name: str, *shape: int) -> StateDict:
        """Weight and bias."""
        return self.draw(**{f'{name}.weight': shape, f'{name}.bias': (shape[0],)})

    def norm(self, name: str) -> StateDict:
        values = self.pair(name, self.dims)
        return values | {f'{name}.weight': 1 + 0.1 * values[f'{name}.weight']}


def dinov2_release(s: Sizes) -> StateDict:
    out = s.draw(cls_token=(1, 1, s.dims), pos_embed=(1, 1 + s.grid**2, s.dims), mask_token=(1, s.dims))
    if s.registers:
        out |= s.draw(register_tokens=(1, s.registers, s.dims))
    out |= s.pair('patch_embed.proj', s.dims, 3, s.patch, s.patch) | s.norm('norm')
    for i in range(s.layers):
        b = f'blocks.{i}'
        out |= s.norm(f'{b}.norm1') | s.pair(f'{b}.attn.qkv', 3 * s.dims, s.dims) | s.pair(f'{b}.attn.proj', s.dims, s.dims)
        out |= s.norm(f'{b}.norm2') | s.draw(**{f'{b}.ls1.gamma': (s.dims,), f'{b}.ls2.gamma': (s.dims,)})
        first, second = ('w12', 'w3') if s.gated else ('fc1', 'fc2')
        out |= s.pair(f'{b}.mlp.{first}', (1 + s.gated) * s.hidden, s.dims)
        out |= s.pair(f'{b}.mlp.{second}', s.dims, s.hidden)
    return out


def dinov3_release(s: Sizes) -> StateDict:
    out = s.draw(cls_token=(1, 1, s.dims), storage_tokens=(1, 4, s.dims), mask_token=(1, s.dims))
    out |= s.pair('patch_embed.proj', s.dims, 3, s.patch, s.patch) | s.norm('norm')
    number = s.dims // s.heads // 4
    out['rope_embed.periods'] = (100.0 ** torch.arange(0, 1, 1 / number)).bfloat16()
    if s.registers:  # of ViT-7B and the satellite models
        out |= s.norm('local_cls_norm')
    for i in range(s.layers):
        b = f'blocks.{i}'
        out |= s.norm(f'{b}.norm1') | s.pair(f'{b}.attn.qkv', 3 * s.dims, s.dims) | s.pair(f'{b}.attn.proj', s.dims, s.dims)
        mask = torch.ones(3 * s.dims)
        mask.chunk(3)[1].zero_()
        out[f'{b}.attn.qkv.bias_mask'] = mask
        out[f'{b}.attn.qkv.bias'] *= mask
        out |= s.norm(f'{b}.norm2') | s.draw(**{f'{b}.ls1.gamma': (s.dims,), f'{b}.ls2.gamma': (s.dims,)})
        for layer in ('w1', 'w2') if s.gated else ('fc1',):
            out |= s.pair(f'{b}.mlp.{layer}', s.hidden, s.dims)
        out |= s.pair(f'{b}.mlp.{"w3" if s.gated else "fc2"}', s.dims, s.hidden)
    return out


def timm_vit(s: Sizes) -> StateDict:
    """Augreg, MAE (no LayerScale), DeiT-III (LayerScale, no place for the class token), DINOv2 (registers)."""
    class_place = not s.registers and not s.scales
    out = s.draw(cls_token=(1, 1, s.dims), pos_embed=(1, class_place + s.grid**2, s.dims))
    if s.registers:
        out |= s.draw(reg_token=(1, s.registers, s.dims))
    out |= s.pair('patch_embed.proj', s.dims, 3, s.patch, s.patch) | s.norm('norm') | s.pair('head', 10, s.dims)
    for i in range(s.layers):
        b = f'blocks.{i}'
        out |= s.norm(f'{b}.norm1') | s.pair(f'{b}.attn.qkv', 3 * s.dims, s.dims) | s.pair(f'{b}.attn.proj', s.dims, s.dims)
        out |= s.norm(f'{b}.norm2')
        if s.scales:
            out |= s.draw(**{f'{b}.ls1.gamma': (s.dims,), f'{b}.ls2.gamma': (s.dims,)})
        out |= s.pair(f'{b}.mlp.fc1', (1 + s.gated) * s.hidden, s.dims) | s.pair(f'{b}.mlp.fc2', s.dims, s.hidden)
    return out


def timm_clip(s: Sizes) -> StateDict:
    s.registers, s.scales, s.gated = 0, False, False
    out = timm_vit(s) | s.norm('norm_pre')
    del out['patch_embed.proj.bias']
    return out


def timm_siglip(s: Sizes) -> StateDict:
    s.registers, s.scales, s.gated = 0, False, False
    out = timm_vit(s) | s.draw(**{'attn_pool.latent': (1, 1, s.dims)}) | s.pair('attn_pool.q', s.dims, s.dims)
    del out['cls_token']
    out['pos_embed'] = out['pos_embed'][:, 1:]
    return out


def mae_release(s: Sizes) -> StateDict:
    s.registers, s.scales, s.gated = 0, False, False
    out = timm_vit(s) | s.draw(mask_token=(1, 1, s.dims), decoder_pos_embed=(1, 1 + s.grid**2, s.dims))
    return out | s.pair('decoder_embed', s.dims, s.dims) | s.norm('decoder_blocks.0.norm1')


def timm_dinov3(s: Sizes, biases: bool = True) -> StateDict:
    out = s.draw(cls_token=(1, 1, s.dims), reg_token=(1, 4, s.dims))
    out |= s.pair('patch_embed.proj', s.dims, 3, s.patch, s.patch) | s.norm('norm')
    for i in range(s.layers):
        b = f'blocks.{i}'
        out |= s.norm(f'{b}.norm1') | s.draw(**{f'{b}.attn.qkv.weight': (3 * s.dims, s.dims)})
        if biases:
            out |= s.draw(**{f'{b}.attn.q_bias': (s.dims,), f'{b}.attn.v_bias': (s.dims,)})
        out |= s.pair(f'{b}.attn.proj', s.dims, s.dims) | s.norm(f'{b}.norm2')
        out |= s.draw(**{f'{b}.gamma_1': (s.dims,), f'{b}.gamma_2': (s.dims,)})
        for layer in ('fc1_g', 'fc1_x') if s.gated else ('fc1',):
            out |= s.pair(f'{b}.mlp.{layer}', s.hidden, s.dims)
        out |= s.pair(f'{b}.mlp.fc2', s.dims, s.hidden)
    return out


def timm_dinov3_without_biases(s: Sizes) -> StateDict:
    return timm_dinov3(s, biases=False)


def hf_dinov3(s: Sizes, blocks: str = 'layer', biases: bool = True) -> StateDict:
    out = s.draw(**{'embeddings.cls_token': (1, 1, s.dims), 'embeddings.register_tokens': (1, 4, s.dims)})
    out |= s.draw(**{'embeddings.mask_token': (1, 1, s.dims)})
    out |= s.pair('embeddings.patch_embeddings', s.dims, 3, s.patch, s.patch) | s.norm('norm')
    for i in range(s.layers):
        out |= hf_dinov3_block(s, f'{blocks}.{i}', biases)
    return out


def hf_dinov3_block(s: Sizes, b: str, biases: bool = True) -> StateDict:
    out = s.norm(f'{b}.norm1') | s.norm(f'{b}.norm2')
    for layer in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
        out |= s.pair(f'{b}.attention.{layer}', s.dims, s.dims)
    for layer in ('k_proj',) if biases else ('q_proj', 'k_proj', 'v_proj'):
        del out[f'{b}.attention.{layer}.bias']
    out |= s.draw(**{f'{b}.layer_scale1.lambda1': (s.dims,), f'{b}.layer_scale2.lambda1': (s.dims,)})
    for layer in ('gate_proj', 'up_proj') if s.gated else ('up_proj',):
        out |= s.pair(f'{b}.mlp.{layer}', s.hidden, s.dims)
    return out | s.pair(f'{b}.mlp.down_proj', s.dims, s.hidden)


def hf_dinov3_7b(s: Sizes) -> StateDict:
    return hf_dinov3(s, biases=False)


def hf_dinov2(s: Sizes) -> StateDict:
    out = s.draw(**{'embeddings.cls_token': (1, 1, s.dims), 'embeddings.mask_token': (1, s.dims)})
    out |= s.draw(**{'embeddings.position_embeddings': (1, 1 + s.grid**2, s.dims)})
    if s.registers:
        out |= s.draw(**{'embeddings.register_tokens': (1, s.registers, s.dims)})
    out |= s.pair('embeddings.patch_embeddings.projection', s.dims, 3, s.patch, s.patch) | s.norm('layernorm')
    for i in range(s.layers):
        b = f'encoder.layer.{i}'
        out |= s.norm(f'{b}.norm1') | s.norm(f'{b}.norm2')
        for layer in ('attention.query', 'attention.key', 'attention.value', 'output.dense'):
            out |= s.pair(f'{b}.attention.{layer}', s.dims, s.dims)
        out |= s.draw(**{f'{b}.layer_scale1.lambda1': (s.dims,), f'{b}.layer_scale2.lambda1': (s.dims,)})
        first, second = ('weights_in', 'weights_out') if s.gated else ('fc1', 'fc2')
        out |= s.pair(f'{b}.mlp.{first}', (1 + s.gated) * s.hidden, s.dims)
        out |= s.pair(f'{b}.mlp.{second}', s.dims, s.hidden)
    return out


def mmpretrain_vit(s: Sizes) -> StateDict:
    out = s.draw(cls_token=(1, 1, s.dims), pos_embed=(1, 1 + s.grid**2, s.dims))
    out |= s.pair('patch_embed.projection', s.dims, 3, s.patch, s.patch) | s.norm('ln1')
    for i in range(s.layers):
        b = f'layers.{i}'
        out |= s.norm(f'{b}.ln1') | s.norm(f'{b}.ln2')
        out |= s.pair(f'{b}.attn.qkv', 3 * s.dims, s.dims) | s.pair(f'{b}.attn.proj', s.dims, s.dims)
        if s.scales:
            out |= s.draw(**{f'{b}.attn.gamma1.weight': (s.dims,), f'{b}.ffn.gamma2.weight': (s.dims,)})
        first, second = ('w12', 'w3') if s.gated else ('layers.0.0', 'layers.1')
        out |= s.pair(f'{b}.ffn.{first}', (1 + s.gated) * s.hidden, s.dims) | s.pair(f'{b}.ffn.{second}', s.dims, s.hidden)
    return out


def public_heads(s: Sizes) -> StateDict:
    out = s.draw(**{'network.q.weight': (s.queries, s.dims)}) | s.pair('network.class_head', s.classes + 1, s.dims)
    for i in (0, 2, 4):
        out |= s.pair(f'network.mask_head.{i}', s.dims, s.dims)
    for i in range(2):
        u = f'network.upscale.{i}'
        out |= s.pair(f'{u}.conv1', s.dims, s.dims, 2, 2) | s.norm(f'{u}.norm')
        out |= s.draw(**{f'{u}.conv2.weight': (s.dims, 1, 3, 3)})
    out['network.attn_mask_probs'] = torch.zeros(s.joint)
    out['network.encoder.pixel_mean'] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    out['network.encoder.pixel_std'] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    out['criterion.empty_weight'] = torch.ones(s.classes + 1)
    return out


def public_eomt(s: Sizes) -> StateDict:
    s.registers, s.scales = 4, True
    vit = {name: value for name, value in timm_vit(s).items() if not name.startswith('head')}
    return {f'network.encoder.backbone.{name}': value for name, value in vit.items()} | public_heads(s)


def public_eomt_dinov3(s: Sizes) -> StateDict:
    vit = {
        name.replace('embeddings.', 'patch_embed.', 1): value
        for name, value in hf_dinov3(s, 'blocks').items()
        if not name.endswith('mask_token')
    }
    return {f'network.encoder.backbone.{name}': value for name, value in vit.items()} | public_heads(s)


def public_decoder(s: Sizes) -> StateDict:
    out = {}
    for i in range(s.levels):
        out |= s.norm(f'bn.{i}') | s.draw(**{f'bn.{i}.{name}': (s.dims,) for name in ('running_mean', 'running_var')})
        out[f'bn.{i}.num_batches_tracked'] = torch.tensor(7)
        out |= s.pair(f'decoder.lateral_projections.{i}.0', s.dims // 2, s.dims)
        out |= s.pair(f'decoder.lateral_projections.{i}.2', s.dims, s.dims // 2)
        out |= s.draw(**{f'decoder.scalers.{i}': (s.dims,)})
    sizes = copy.copy(s)
    sizes.gated, sizes.layers = False, s.joint
    blocks = {name: value for name, value in hf_dinov3(sizes, 'blocks').items() if name.startswith('blocks.')}
    heads = {name.removeprefix('network.'): value for name, value in public_heads(s).items() if 'encoder' not in name}
    heads.pop('criterion.empty_weight')
    out |= {f'decoder.{name}': value for name, value in (s.norm('decoder_norm') | blocks | heads).items()}
    return {f'network.{name}': value for name, value in out.items()}


def _encoder(theirs: StateDict) -> StateDict:
    return {name: value for name, value in theirs.items() if name.startswith('network.encoder.')}


def public_pmt(s: Sizes) -> StateDict:
    return _encoder(public_eomt(s)) | public_decoder(s)


def public_pmt_dinov3(s: Sizes) -> StateDict:
    return _encoder(public_eomt_dinov3(s)) | public_decoder(s)


LAYOUTS = {
    'DINOv2 release': dinov2_release,
    'DINOv3 release': dinov3_release,
    'plain ViT of timm': timm_vit,
    'plain ViT of timm: CLIP': timm_clip,
    'plain ViT of timm: SigLIP': timm_siglip,
    'plain ViT of timm: MAE release': mae_release,
    'DINOv3 of timm': timm_dinov3,
    'DINOv3 of timm: without biases': timm_dinov3_without_biases,
    'DINOv3 of Hugging Face': hf_dinov3,
    'DINOv3 of Hugging Face: 7B': hf_dinov3_7b,
    'DINOv2 of Hugging Face': hf_dinov2,
    'ViT of MMPretrain': mmpretrain_vit,
    'public EoMT (DINOv2)': public_eomt,
    'public EoMT (DINOv3)': public_eomt_dinov3,
    'public PMT (DINOv2)': public_pmt,
    'public PMT (DINOv3)': public_pmt_dinov3,
    'decoder of a public PMT': public_decoder,
}
