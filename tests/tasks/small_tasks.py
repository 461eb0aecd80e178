"""Four tasks on one small encoder: its head, adapters in all blocks, adapters in the second one, a head of three classes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import make_config
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import init_model

from mmseg_eomt.adapters import inject, lora_config, save_adapter
from mmseg_eomt.adapters.base_weights import describe_base

SIGNS = dict(classes=['none', 'sign', 'pole'], palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]])


@pytest.fixture(scope='session')
def upper(scenes: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in PEFT's format of adapters in each part's second block alone."""
    folder = tmp_path_factory.mktemp('upper')
    model = init_model(make_config(scenes, folder), base, device='cpu')
    known = describe_base(model, dict(model.named_parameters()), base)
    config = lora_config(4, 8, 0.0, ['qkv', 'fc1'], layers_to_transform=[1], layers_pattern='blocks')
    inject(model, config, ['decode_head.class_head'])
    for name, parameter in model.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, folder / 'adapter', base=known, meta=dict(dataset_meta=model.dataset_meta))
    return str(folder / 'adapter')


@pytest.fixture(scope='session')
def signs(scenes: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of another head on the encoder, of three classes."""
    folder = tmp_path_factory.mktemp('signs')
    config = make_config(scenes, folder, **{'model.decode_head.num_classes': 3, 'randomness': dict(seed=1)})
    model = Runner.from_cfg(config).model
    encoder = {k: v for k, v in torch.load(base)['state_dict'].items() if k.startswith('backbone.')}
    model.load_state_dict(encoder, strict=False)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=SIGNS)), folder / 'signs.pth')
    return str(folder / 'signs.pth')


@pytest.fixture(scope='session')
def checkpoints(base: str, lora: str, upper: str, signs: str) -> dict[str, str]:
    return dict(day=base, dusk=lora, night=upper, signs=signs)


@pytest.fixture
def tasks_config(small_config, checkpoints):
    """Make a config of several tasks: ``tasks_config(name=checkpoint, …)``, or of all four of them."""

    def make(options: dict | None = None, **tasks) -> Config:
        config = small_config(name='tasks', **{'model.test_cfg.mode': 'whole', **(options or {})})
        config.model.update(type='MultiTaskSegmentor', tasks=tasks or checkpoints)
        return config

    return make


@pytest.fixture(scope='session')
def images(scenes: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path)) for path in sorted(scenes.glob('leftImg8bit/val/*/*.png'))]
