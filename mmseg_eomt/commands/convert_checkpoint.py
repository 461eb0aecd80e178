"""Convert a whole EoMT, or a PMT, from any known format to another.

python tools/convert_checkpoint.py SRC DST --to mmseg    a checkpoint of this plugin (.pth)
python tools/convert_checkpoint.py SRC DST --to eomt     a checkpoint of the public implementation (.bin)
python tools/convert_checkpoint.py SRC DST --to pmt      a checkpoint of the public implementation of PMT (.bin)
python tools/convert_checkpoint.py SRC DST --to hf       a folder for transformers' from_pretrained

SRC is a path, a URL or hf://owner/repo[/file][@revision]; differences to DINOv3 are given as DELTA+BASE, a PMT's
decoder with its ViT as DECODER+VIT. Nothing needs to be converted to be used here: load_from, init_cfg and tools/test.py
take every format as it is.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmseg_eomt.adapters.checkpoint import weights_of
from mmseg_eomt.adapters.names import is_adapter
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.segmentor import share_vit
from mmseg_eomt.weights.arch import ARCH_NOTE, check_noted, noted_arch
from mmseg_eomt.weights.checkpoint import ViTWeights, parse_checkpoint, parse_delta
from mmseg_eomt.weights.checkpoint_io import write_safetensors
from mmseg_eomt.weights.convert import to_eomt, to_hugging_face, to_mmseg, to_pmt
from mmseg_eomt.weights.decoder import decoder_of
from mmseg_eomt.whole import whole_file, whole_folder


def convert(args: argparse.Namespace) -> None:
    """Read, convert and write."""
    target = Path(args.dst)
    if target.exists():
        raise ValueError(f'{target} is there already: name another, or delete it.')
    loaded = CheckpointLoader.load_checkpoint(args.src, map_location='cpu', logger='silent')
    adapters = [name for name in weights_of(loaded) if is_adapter(name)]
    if adapters:
        raise ValueError(
            f'{args.src} has adapters ({len(adapters)} tensors, such as {adapters[0]}): merge them first, with '
            f'tools/adapter.py merge.'
        )
    found = parse_delta(loaded, args.src)
    if not decoder_of(found.weights):
        found = parse_checkpoint(loaded, args.src)
    known = loaded['meta'] if isinstance(loaded, dict) and 'meta' in loaded else {}
    meta = {name: known[name] for name in ('dataset_meta', ARCH_NOTE) if name in known}
    written = target
    if args.to == 'hf':
        classes = class_names(meta, args.src)
        arch = get_arch(share_vit(Config.fromfile(args.config).model)['backbone']['arch']) if args.config else None
        check_noted(noted_arch(loaded), arch, args.src)
        config, weights = to_hugging_face(found, arch, args.img_size, classes)
        written = target / 'model.safetensors'
        with whole_folder(target) as new:
            (new / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
            write_safetensors(new / written.name, weights)
    else:
        write: dict[str, Callable[[ViTWeights], dict[str, Any]]] = dict(
            mmseg=lambda found: to_mmseg(found, meta), eomt=to_eomt, pmt=to_pmt
        )
        content = write[args.to](found)
        weights = content.get('state_dict', content)
        if target.suffix == '.safetensors':
            write_safetensors(target, weights)
        else:
            with whole_file(target) as new:
                torch.save(content, new)
    print(f'{args.src} ({found.kind}) -> {written}: {len(weights)} tensors, {written.stat().st_size / 1e6:,.1f} MB')


def class_names(meta: dict[str, Any], source: str) -> list[str] | None:
    """The classes that a checkpoint notes; None if it notes none."""
    noted = meta.get('dataset_meta') or {}
    names = noted.get('classes') if isinstance(noted, dict) else noted
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise ValueError(f'{source}: classes in its dataset_meta are {names!r}, and a list of names belongs there.')
    return None if names is None else list(names)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', metavar='SRC')
    parser.add_argument('dst', metavar='DST')
    parser.add_argument('--to', required=True, choices=('mmseg', 'eomt', 'pmt', 'hf'))
    parser.add_argument('--config', help='for hf, of a model whose arch has no name: the config that it was trained with')
    parser.add_argument('--img-size', type=int, help='for hf with DINOv3: side of the images in pixels (default: 640)')
    args = parser.parse_args(argv)
    with errors_in_a_sentence('convert_checkpoint'):
        convert(args)
