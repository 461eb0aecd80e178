"""Whole files of every kind that a user may hand over, to be damaged."""

import contextlib
import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT, make_config
from layouts import Sizes, dinov2_release, hf_dinov3, public_eomt, public_eomt_dinov3
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from safetensors.torch import save_file

from faults import forks
from mmseg_eomt.commands.cli import run_command

FITTING = dict(dims=32, heads=2, layers=4, hidden=128, gated=False, patch=16, grid=4, joint=2, queries=12, classes=19)
ROTARY = dict(embed_dims=32, num_layers=4, num_heads=2, rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv', norm_eps=1e-5)
ANNEALED = {'custom_hooks.0.start_iters': [-2, -2], 'custom_hooks.0.end_iters': [-1, -1]}
RUNS: dict[str, dict[str, Any]] = {
    'plain': {},
    'averaged': dict(average=True),
    'slim': {'lora': True, 'custom_hooks.0.save_adapter': True},
    'slim_averaged': dict(lora=True, average=True),
    'with_base': {'lora': True, 'custom_hooks.0.save': 'full'},
}


def make_scenes(folder: Path) -> None:
    """A few made images with masks."""
    sizes = ['--train', '4', '--val', '2', '--height', '64', '--width', '128']
    command = [sys.executable, 'tools/make_street_scenes.py', folder, *sizes]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Store:
    """Whole files, and configs for them.

    Args:
        place: The folder that they are in.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.scenes = place / 'scenes'

    def config(self, work_dir: Path, lora: bool = False, rotary: bool = False, **changes: Any) -> Config:
        """Of a small run."""
        config = make_config(self.scenes, work_dir, lora, 4, **changes)
        if rotary:
            config.merge_from_dict(
                {f'model.{part}.arch': dict(_delete_=True, **ROTARY) for part in ('backbone', 'decode_head')}
            )
        return config

    def prepare(self) -> None:
        """What the others are made from: images, and a base."""
        make_scenes(self.scenes)
        self._made(self._start)
        self.train('plain')

    def _start(self) -> None:
        """Random weights that predict many classes: labels and scores are to show where a model is another."""
        register_all_modules()
        weights = MODELS.build(self.config(self.place).model).state_dict()
        for name in ('class_head.weight', 'mask_head.4.weight'):
            weights[f'decode_head.{name}'] *= 50
        torch.save(dict(state_dict=weights), self.place / 'start.pth')

    def train(self, name: str) -> None:
        """One of the runs: its last checkpoint is NAME.pth."""
        changes = dict(RUNS[name])
        average = changes.pop('average', False)
        if changes.get('lora'):
            changes['load_from'] = str(self.place / 'plain.pth')
        else:
            changes.update(ANNEALED, load_from=str(self.place / 'start.pth'))
        usual = {'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 5}
        config = self.config(self.place / 'runs' / name, **{**usual, **changes})
        config.custom_hooks += [dict(type='EMAHook', momentum=0.1)] * average
        self._made(lambda: Runner.from_cfg(config).train() and None)
        shutil.copy(Path(config.work_dir) / 'iter_4.pth', self.place / f'{name}.pth')

    def finish(self) -> None:
        """What is made from the runs, and files in public layouts."""
        shutil.copytree(self.place / 'runs' / 'slim' / 'adapters' / 'iter_4', self.place / 'adapter')
        self._made(self._merge)
        write_public(self.place)

    def _merge(self) -> None:
        config = self.place / 'lora.py'
        self.config(self.place / 'runs' / 'merge', lora=True).dump(config)
        tool('adapter.py', 'merge', config, self.place / 'slim.pth', self.place / 'merged.pth')

    def _made(self, work: Callable[[], Any]) -> None:
        end = forks.run(work, self.place / 'made.log')
        if end.error or end.signal:
            raise RuntimeError(f'No files to damage: {end}')


def write_public(place: Path) -> None:
    """Files in public layouts."""
    torch.save(public_eomt(Sizes(0, **FITTING)), place / 'public.bin')
    torch.save(dict(state_dict=public_eomt_dinov3(Sizes(1, **FITTING))), place / 'public_v3.ckpt')
    torch.save(dinov2_release(Sizes(2, registers=4, scales=True, **FITTING)), place / 'vit.pth')
    rotary = {name: value.contiguous() for name, value in hf_dinov3(Sizes(3, **FITTING)).items()}
    save_file(rotary, place / 'vit_v3.safetensors', metadata=dict(format='pt'))
    folder, names = place / 'shards', sorted(rotary)
    folder.mkdir()
    parts = {f'model-0000{n}-of-00002.safetensors': names[n - 1 :: 2] for n in (1, 2)}
    for file, own in parts.items():
        save_file({name: rotary[name] for name in own}, folder / file, metadata=dict(format='pt'))
    index = dict(metadata=dict(total_size=0), weight_map={name: file for file, own in parts.items() for name in own})
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def tool(name: str, *args: object) -> str:
    """Run a command of ``tools`` in this process as a user would; what it prints."""
    sys.argv = [name, *map(str, args)]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        run_command(Path(name).stem)
    return text.getvalue()


def other_base(place: Path) -> Path:
    """A base that was trained otherwise than ``plain.pth``."""
    path = place / 'other_base.pth'
    if not path.is_file():
        checkpoint = torch.load(place / 'plain.pth', weights_only=True)
        for name, value in checkpoint['state_dict'].items():
            if value.is_floating_point():
                checkpoint['state_dict'][name] = value * (1 + 0.01 * random.Random(name).random())
        torch.save(checkpoint, path)
    return path
