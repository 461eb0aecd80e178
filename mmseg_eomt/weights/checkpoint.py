"""A checkpoint: what its file notes, which format it is in, and its weights under our names."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmseg_eomt.weights.checkpoint_io import check_kind
from mmseg_eomt.weights.decoder import OWN_MARK, OWN_PMT, check_decoder, decoder_of, from_own, has_vit, with_vit
from mmseg_eomt.weights.formats import EOMT_DINOV3, EOMT_FORMATS, HF_EOMT_DINOV3, OWN_VITS, VIT_FORMATS
from mmseg_eomt.weights.key_mapping import GRID, UNUSED, Format, StateDict, is_gated
from mmseg_eomt.weights.pmt_formats import DECODER, PMT_FORMATS

UNKNOWN_SOURCE = 'The checkpoint'
TAG = 'mmseg_eomt'  # in the metadata of a state dict: its Checkpoint
FORMATS = EOMT_FORMATS + PMT_FORMATS + VIT_FORMATS
OWN = 'segmentor of mmseg-eomt'
OWN_KINDS = (OWN, OWN_PMT, *(known.name for known in OWN_VITS))
WRAPPERS = ('state_dict', 'model')  # of mmengine and Lightning; of MAE and DeiT
DIMENSIONS = {
    'patch_embed.proj.weight': 4,
    **dict.fromkeys(('pos_embed', 'cls_pos_embed', 'cls_token', 'reg_token'), 3),
    **dict.fromkeys(('query_embed.weight', 'class_head.weight'), 2),
    **dict.fromkeys(('attn_mask_probs', GRID), 1),
}
NORM_OF_A_DELTA = 0.1  # norms' weights are about 1, and fine-tuning moves them by hundredths
Purpose = Literal['init', 'train', 'resume', 'predict']


@dataclass
class Checkpoint:
    """A checkpoint file that was read. It travels with its state dict, as mmengine keeps a state dict's metadata.

    Attributes:
        source: Its path or URL, for messages.
        meta: What it notes beside the weights: ``eomt_arch``, ``adapter``, ``merged``, ``dataset_meta``, …
        purpose: What its weights are loaded for: ``'init'`` by ``init_cfg``; by a Runner ``'train'`` as the start of a new
            run, ``'resume'`` and ``'predict'``; None where a model is loaded by hand, to predict with it. Default: None.
        is_fitted: Whether the state dict is that of the model already (:func:`~.fit.fit_checkpoint`). Default: False.
    """

    source: str = UNKNOWN_SOURCE
    meta: Mapping[str, Any] = field(default_factory=dict)
    purpose: Purpose | None = None
    is_fitted: bool = False
    _recognised: 'Recognised | None' = None
    _parsed: 'ViTWeights | None' = None

    @classmethod
    def of(cls, state_dict: Mapping[str, Tensor]) -> 'Checkpoint':
        """The checkpoint that a state dict is from; a new one where nothing is known."""
        found = getattr(state_dict, '_metadata', {}).get(TAG)
        return found if isinstance(found, cls) else cls()

    def attach(self, state_dict: Mapping[str, Tensor]) -> StateDict:
        """A shallow copy of a state dict that carries this checkpoint."""
        attached: Any = OrderedDict(state_dict)
        attached._metadata = {**getattr(state_dict, '_metadata', {}), TAG: self}
        return attached

    def __reduce__(self) -> tuple:
        """Saved beside its weights it is an empty dict: files hold plain values, as ``weights_only`` reads them."""
        return OrderedDict, ()

    def __deepcopy__(self, memo: dict) -> 'Checkpoint':
        """Stay with a copy of the weights, as EMAHook makes one."""
        return self

    @property
    def starts_training(self) -> bool:
        """Whether a new run starts from it, so that heads of another size may be randomly initialised."""
        return self.purpose in ('init', 'train')

    def recognise(self, tensors: StateDict) -> 'Recognised':
        """As :func:`recognise_checkpoint`, once; again if mmengine's ``revise_keys`` has changed names."""
        if self._recognised is None or self._recognised.names != tensors.keys():
            self._recognised, self._parsed = recognise_checkpoint(tensors), None
        return self._recognised

    def parse(self, tensors: StateDict) -> 'ViTWeights':
        """As :func:`parse_checkpoint`, once for all models that take weights from it."""
        recognised = self.recognise(tensors)
        if self._parsed is None:
            self._parsed = _whole(_read(recognised, self.source), self.source)
        return self._parsed

    def fitted(self, state_dict: StateDict) -> StateDict:
        """A state dict that is of the model that takes it, with this checkpoint."""
        return replace(self, is_fitted=True, _recognised=None, _parsed=None).attach(state_dict)


@dataclass(frozen=True)
class ViTWeights:
    """The weights of a checkpoint under our names.

    Attributes:
        source: Its path or URL, for messages.
        kind: The name of its format.
        is_eomt: Whether it is a whole EoMT rather than a ViT.
        weights: Our state dict of it (:mod:`~mmseg_eomt.weights.key_mapping`); what the decoder of a PMT holds begins with
            :data:`~mmseg_eomt.weights.pmt_formats.DECODER`.
    """

    source: str
    kind: str
    is_eomt: bool
    weights: StateDict

    @property
    def num_layers(self) -> int:
        """The ViT's blocks in all."""
        return 1 + max(int(name.split('.')[1]) for name in self.weights if name.startswith('blocks.'))

    @property
    def num_joint_blocks(self) -> int | None:
        """The blocks that ran together with the queries; None for a ViT, and where it cannot be inferred."""
        probs = self.weights.get('attn_mask_probs')
        return None if probs is None else len(probs)


def tensors_of(checkpoint: object) -> StateDict:
    """The tensors of a loaded file, out of its wrapper, without the prefixes of ``DataParallel`` and ``compile``."""
    if not isinstance(checkpoint, Mapping):
        return {}
    given = next((checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    return {
        re.sub(r'^module\.|(?<![^.])_orig_mod\.', '', name): value
        for name, value in given.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def recognise(state_dict: StateDict) -> Format | None:
    """The public format of a state dict; None if it is none that is known."""
    return next((known for known in FORMATS if known.matches(state_dict)), None)


@dataclass(frozen=True)
class Recognised:
    """What format the tensors of a checkpoint are in.

    Attributes:
        format: The public format; None for our own segmentor's, and where none is known.
        is_own: Whether they are those of a segmentor with :class:`EoMTViT` and :class:`EoMTHead`.
        part: The tensors that are in the format: all, or the backbone of a classifier or segmentor.
        rest: The others.
        names: Of all of them.
    """

    format: Format | None
    is_own: bool
    part: StateDict
    rest: StateDict
    names: frozenset[str]


def recognise_checkpoint(tensors: StateDict) -> Recognised:
    """As :func:`recognise`, also for our own segmentor, and for the backbone of a classifier or segmentor."""
    own = is_own(tensors)
    known = None if own else recognise(tensors)
    if own or known is not None:
        return Recognised(known, own, tensors, {}, frozenset(tensors))
    part = {name.removeprefix('backbone.'): v for name, v in tensors.items() if name.startswith('backbone.')}
    rest = {name: value for name, value in tensors.items() if not name.startswith('backbone.')}
    return Recognised(recognise(part), False, part, rest, frozenset(tensors))


def is_own(state_dict: StateDict) -> bool:
    """Whether a state dict is that of a segmentor with :class:`EoMTViT` and :class:`EoMTHead`."""
    names = {'backbone.patch_embed.proj.weight', 'backbone.blocks.0.norm1.weight', 'decode_head.query_embed.weight'}
    return names <= state_dict.keys() and 'backbone.norm.weight' not in state_dict  # which would be a ViT of its own


def parse_checkpoint(checkpoint: object, source: str) -> ViTWeights:
    """Read the content of a checkpoint, whatever public format it is in.

    Args:
        checkpoint: What was loaded from the file.
        source: Its path or URL, for messages.

    Raises:
        ValueError: If the format is not known, or if it is a delta without its base, or a decoder without its ViT.
    """
    return _whole(parse_delta(checkpoint, source), source)


def parse_delta(checkpoint: object, source: str) -> ViTWeights:
    """As :func:`parse_checkpoint`, for a file that may be a delta, or the decoder of a PMT alone."""
    tensors = tensors_of(checkpoint)
    if not tensors:
        raise ValueError(f'{source} is in no format that is known here: it has {type(checkpoint).__name__}. {_known()}')
    return _read(recognise_checkpoint(tensors), source)


def _whole(found: ViTWeights, source: str) -> ViTWeights:
    if decoder_of(found.weights) and not has_vit(found.weights):
        raise ValueError(needs_vit(found))
    if is_delta(found):
        raise ValueError(
            f'{source} holds differences to DINOv3, not weights: name it together with the DINOv3 file it was made from, as '
            f"'{source}+{_likely_base(found.weights)}' (a path or URL will do too)."
        )
    return found


def _known() -> str:
    return f'Known are: {", ".join(dict.fromkeys(known.name.split(" (tr")[0] for known in FORMATS))}, {OWN}.'


def needs_vit(found: ViTWeights) -> str:
    """What to do with the decoder of a PMT where its ViT is needed too."""
    return (
        f'{found.source} ({found.kind}) holds the decoder of a PMT without the ViT that it is for: name both, as '
        f"'{found.source}+{_likely_base(decoder_of(found.weights))}' (a path or URL will do too)."
    )


def _read(recognised: Recognised, source: str) -> ViTWeights:
    known, part, rest = recognised.format, recognised.part, recognised.rest
    if OWN_MARK in recognised.names:
        return _checked_pmt(from_own({**{f'backbone.{name}': v for name, v in part.items()}, **rest}), OWN_PMT, source)
    if recognised.is_own:
        weights = from_segmentor(part)
        check_complete(weights, source, OWN)
        check_form(weights, source)
        return ViTWeights(source, OWN, True, weights)
    if known is None:
        names = sorted({*(f'backbone.{name}' for name in part), *rest})[:4]
        raise ValueError(f'{source} is in no format that is known here: it has {names}. {_known()}')
    try:
        weights = known.read(part)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f'{source} looks like a {known.name}, but is not one that fits here: {error}') from error
    if known in PMT_FORMATS:
        return _checked_pmt(weights, known.name, source)
    check_complete(weights, source, known.name)
    check_form(weights, source)
    for name, value in part.items():  # under the format's own names: joined with others, it may have become one of theirs
        if f'{UNUSED}{name}' not in weights and name != GRID:
            check_kind(name, value, torch.float32, source)
    if known is HF_EOMT_DINOV3 and is_gated(weights):
        raise ValueError(
            f"{source} ({known.name}) has gated MLPs, and Hugging Face's model has one activation for gates and heads, the "
            f"authors' SiLU and GELU: it would predict otherwise here. Start from the DINOv3 that it was made from."
        )
    return ViTWeights(source, known.name, known.is_eomt, weights | {f'{UNUSED}{name}': v for name, v in rest.items()})


def _checked_pmt(weights: StateDict, kind: str, source: str) -> ViTWeights:
    check_decoder(decoder_of(weights), source)
    vit = {name: value for name, value in weights.items() if not name.startswith(DECODER)}
    if has_vit(vit):
        check_complete(vit, source, kind)
        check_form(vit, source)
    return ViTWeights(source, kind, False, weights)


def check_complete(weights: StateDict, source: str, kind: str) -> None:
    """Make sure that no weight of a ViT is missing that others imply.

    Raises:
        ValueError: If some are, with their names.
    """
    blocks: dict[int, set[str]] = {}
    for name in weights:
        if name.startswith('blocks.'):
            _, number, rest = name.split('.', 2)
            blocks.setdefault(int(number), set()).add(rest)
    layers = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
    parts = set().union(*blocks.values(), (f'{layer}.weight' for layer in layers))
    needed = [f'blocks.{i}.{part}' for i in range(max(blocks, default=0) + 1) for part in sorted(parts)]
    needed += ['patch_embed.proj.weight', 'norm.weight', 'norm.bias']
    needed += ['pos_embed'] if 'pos_grid' in weights else []
    absent = [name for name in needed if name not in weights]
    if absent:
        raise ValueError(f'{source} ({kind}) lacks {len(absent)} weights: {", ".join(absent)}.')


def check_form(weights: StateDict, source: str) -> None:
    """Make sure that a ViT's weights are floating-point numbers, in as many dimensions as their shapes are read of.

    Raises:
        ValueError: If one is not, with its name.
    """
    for name, value in weights.items():
        if name.startswith(UNUSED):
            continue
        if name != GRID:
            check_kind(name, value, torch.float32, source)
        wanted = 2 if name.endswith('mlp.fc2.weight') else DIMENSIONS.get(name, value.dim() or 1)
        if value.dim() != wanted or not value.numel() or (name == GRID and value.shape != (2,)):
            raise ValueError(f'{source}: {name} is of shape {tuple(value.shape)}, and {wanted} dimensions belong there.')
    height, width = weights['patch_embed.proj.weight'].shape[2:]
    if height != width:
        raise ValueError(f'{source}: patch_embed.proj.weight has patches of {height}×{width}, and squares belong there.')


def from_segmentor(state_dict: StateDict) -> StateDict:
    """A segmentor's backbone and head as one whole ViT, with the head's entries beside the blocks."""
    first = 1 + max(int(name.split('.')[2]) for name in state_dict if name.startswith('backbone.blocks.'))
    out = {}
    for name, value in state_dict.items():
        part, _, rest = name.partition('.')
        if part == 'decode_head' and rest.startswith('blocks.'):
            _, index, rest = rest.split('.', 2)
            rest = f'blocks.{int(index) + first}.{rest}'
        if part in ('backbone', 'decode_head'):
            out[rest] = value
    return out


def to_segmentor(weights: StateDict, num_joint_blocks: int) -> StateDict:
    """The reverse of :func:`from_segmentor`, for any split of the blocks."""
    first = 1 + max(int(name.split('.')[1]) for name in weights if name.startswith('blocks.')) - num_joint_blocks
    parts = ('norm', 'input_projection', 'query_embed', 'class_head', 'mask_head', 'upscale', 'joint_rein')
    head = (*(f'{part}.' for part in parts), 'attn_mask_probs')
    out = {}
    for name, value in weights.items():
        if name.startswith(UNUSED):
            continue
        if name.startswith('blocks.'):
            _, index, rest = name.split('.', 2)
            joint = int(index) - first
            name = f'decode_head.blocks.{joint}.{rest}' if joint >= 0 else f'backbone.{name}'
        else:
            name = f'decode_head.{name}' if name.startswith(head) else f'backbone.{name}'
        out[name] = value
    return out


def is_delta(found: ViTWeights) -> bool:
    """Whether an EoMT on DINOv3 holds differences to DINOv3's weights, as the authors publish them.

    Names and shapes are those of whole weights; the norms tell, whose weights are near 1 in a model and near 0 in a
    difference.
    """
    if found.kind != EOMT_DINOV3.name:
        return False
    vit = re.compile(r'(blocks\.\d+\.norm\d|norm)\.weight')
    norms = [value.float().abs().mean() for name, value in found.weights.items() if vit.fullmatch(name)]
    return bool(torch.stack(norms).mean() < NORM_OF_A_DELTA)


def add_base(delta: ViTWeights, base: ViTWeights) -> StateDict:
    """The weights of an EoMT that was published as differences to a ViT, or of a PMT that was published without its ViT.

    An EoMT's ViT is the sum; queries, heads and upscaling are the delta's own.

    Returns:
        A state dict in the authors' format.

    Raises:
        ValueError: If the first is neither, or the second is not the ViT it was made from, as far as shapes show.
    """
    decoder = {name: value for name, value in delta.weights.items() if name.startswith(DECODER)}
    if base.is_eomt or decoder_of(base.weights):
        raise ValueError(
            f'{base.source} ({base.kind}) is {"an EoMT" if base.is_eomt else "a PMT"}, not the ViT that {delta.source} is '
            f'for, which likely is {_likely_base(decoder_of(decoder) or delta.weights)}.'
        )
    if decoder and not has_vit(delta.weights):
        return with_vit(decoder, base.weights)
    if not is_delta(delta):
        raise ValueError(
            f'{delta.source} ({delta.kind}) holds whole weights, not differences to others: leave out +{base.source}.'
        )
    head = ('query_embed.', 'class_head.', 'mask_head.', 'upscale.', 'attn_mask_probs', UNUSED)
    total = dict(delta.weights)
    wrong = []
    for name, value in delta.weights.items():
        if name.startswith(head):
            continue
        other = base.weights.get(name)
        if other is None and name.endswith('attn.qkv.bias'):
            other = torch.zeros_like(value)  # timm omits biases that are all zero
        if other is None or other.shape != value.shape:
            wrong.append(f'{name}: {tuple(value.shape)} and {None if other is None else tuple(other.shape)}')
        else:
            total[name] = value.float() + other.float()
    wrong += [f'{name}: only in the base' for name in base.weights.keys() - total.keys() if not name.startswith(UNUSED)]
    if wrong:
        raise ValueError(
            f'{base.source} ({base.kind}) is not the ViT that {delta.source} holds differences to: {len(wrong)} weights do '
            f'not fit, such as {"; ".join(wrong[:2])}. Likely it is {_likely_base(delta.weights)}.'
        )
    return EOMT_DINOV3.write(total)


def _likely_base(weights: StateDict) -> str:
    dims = weights['query_embed.weight'].shape[-1]
    size = {384: 's', 768: 'b', 1024: 'l', 1280: 'h', 4096: '7b'}.get(dims, 'l')
    plus = 'plus' if is_gated(weights) and size != '7b' else ''
    return f'hf://facebook/dinov3-vit{size}16{plus}-pretrain-lvd1689m'
