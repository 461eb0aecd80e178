"""The commands and code of docs/lora.md run as they stand, in their order, on a small model's files."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import ROOT, main_of
from mmengine.config import Config

PAGE = (ROOT / 'docs' / 'lora.md').read_text(encoding='utf-8')


@pytest.mark.slow
def test_the_page_runs(in_process, monkeypatch, small_config, config_file, base, lora, tmp_path):
    monkeypatch.setattr('sys.argv', ['python'])  # which the toolbox's scripts set
    files = {
        'configs/eomt_lora_demo.py': next(Path(lora).parent.glob('*.py')),
        'configs/eomt_demo.py': config_file(small_config()),
        'work_dirs/eomt_lora_demo/iter_200.pth': lora,
        'work_dirs/eomt_demo/iter_600.pth': base,
        'work_dirs/eomt_lora_demo/': f'{tmp_path}/',
    }

    def fitted(text: str) -> str:
        for shown, file in files.items():
            text = text.replace(shown, str(file))
        return text

    ran, names = [], {}
    for kind, block in re.findall(r'```(bash|python)\n(.*?)```', PAGE, re.S):
        if kind == 'python':
            exec(fitted(block), names)
            continue
        for line in block.strip().splitlines():
            command = shlex.split(fitted(line.split('#')[0]))
            if 'train.py' not in line:  # training is what the other tests are for
                in_process(main_of(command[1]), *command[2:])
                ran.append(line)
    assert len(ran) == 9
    model = names['model']  # half of one change and half of the same
    merged = torch.load(tmp_path / 'merged.pth', weights_only=True)['state_dict']
    assert all(torch.allclose(value, merged[name], atol=1e-5) for name, value in model.state_dict().items())


def test_the_hooks_that_are_shown_build():
    from mmseg.registry import HOOKS

    shown = re.findall(r"^dict\(type='LoRAHook'.*\)$", PAGE, re.M)
    assert len(shown) == 2
    assert all(HOOKS.build(eval(line)).make_config() for line in shown)


def test_the_demo_is_what_the_page_speaks_of():
    config = Config.fromfile(ROOT / 'configs' / 'eomt_lora_demo.py')
    assert config.load_from == 'work_dirs/eomt_demo/iter_600.pth'
    assert config.train_cfg.max_iters == 200
