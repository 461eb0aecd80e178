"""Code that the pages show works as it stands."""

import re

import cv2
import numpy as np
import pytest
from conftest import ROOT, small_options
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import HOOKS


def blocks(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(encoding='utf-8'), re.S)


@pytest.fixture
def cracks(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('img', 'ann'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / f'img/{split}/{i}.jpg'), rng.integers(0, 256, (64, 128, 3), np.uint8))
            cv2.imwrite(str(tmp_path / f'ann/{split}/{i}.png'), rng.choice([0, 1, 255], (64, 128)).astype(np.uint8))
    return tmp_path


def test_the_config_for_ones_own_data_trains_and_evaluates(cracks, tmp_path):
    (block,) = blocks('own_data.md')
    file = tmp_path / 'my_data.py'
    file.write_text(block.replace("'eomt_lora_cityscapes.py'", repr(str(ROOT / 'configs' / 'eomt_lora_tiny_cityscapes.py'))))
    config = Config.fromfile(file)
    config.merge_from_dict(small_options(cracks, tmp_path / 'run', 2))

    runner = Runner.from_cfg(config)
    runner.train()

    assert runner.model.decode_head.num_classes == 2
    assert runner.message_hub.get_scalar('val/mIoU').current() > 0


def test_the_lora_options_shown_are_the_defaults():
    (block,) = (block for block in blocks('lora.md') if 'peft=dict()' in block)
    values: dict = {}
    exec(block, {}, values)
    shown = HOOKS.build(values['custom_hooks'][0])
    default = HOOKS.build(dict(type='LoRAHook'))
    assert shown.make_config() == default.make_config()
    assert shown.trainable_modules == default.trainable_modules
