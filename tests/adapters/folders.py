"""Folders of adapters of a small model, and ways to change them, for several files of tests."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmseg_eomt.adapters import inject, lora_config, save_adapter

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)).eval()


def saved(folder: Path, alpha: float = 8, rank: int = 2, **changes) -> nn.Module:
    """An adapter of the small model, whose every parameter has moved."""
    model = small()
    inject(model, lora_config(rank, alpha, 0.0, ['0'], **changes), ['2'])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad
    save_adapter(model, folder)
    return model.eval()


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the tensors of a folder, as other code might have written them: without digests of ours."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata=dict(format='pt'))


def reconfigure(folder: Path, **fields) -> None:
    """Change the config of a folder that PEFT has written."""
    rewrite(folder, lambda weights: None)
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **fields}))
