"""The commands of README and docs run as they stand, in a checkout whose configs are small."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, make_config, run_line, small_recipe
from layouts import Sizes, public_eomt
from server import serve
from test_docs_weights import SMALL

HUB_MODEL = 'tue-mps/cityscapes_semantic_eomt_large_1024'
PAGES = ['README.md', 'docs/start.md', 'docs/own_data.md', 'docs/train.md', 'docs/predict.md']
ELSEWHERE = {  # pages whose commands other tests run
    'docs/adapter_options.md': 'test_docs_adapters.py',
    'docs/anomaly.md': 'anomaly/test_docs_anomaly.py',
    'docs/anomaly_data.md': 'anomaly/test_docs_anomaly.py',
    'docs/anomaly_training.md': 'anomaly/test_docs_anomaly.py',
    'docs/deploy.md': 'test_export.py',
    'docs/frozen.md': 'test_docs_adapters.py',
    'docs/lora.md': 'test_docs_lora.py',
    'docs/model_zoo.md': 'test_model_zoo.py',
    'docs/performance.md': 'test_docs_performance.py',
    'docs/reliability.md': 'faults/test_kill.py',
    'docs/robustness.md': 'test_docs_adapters.py',
    'docs/tasks.md': 'test_docs_adapters.py',
    'docs/toolbox.md': 'test_toolbox.py',
    'docs/weights.md': 'test_docs_weights.py',
    'docs/measurements.md': None,  # what the figures were measured with: hours
}
SKIPPED = {  # commands that other things run
    'pip install': 'make env',
    'make ': 'CI',
    'mmseg-eomt': 'test_wheel.py',
}
STEPS = 2  # iterations that a run takes here


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding='utf-8')
    blocks = re.findall(r'```bash\n(.*?)```', text, re.S)
    return [line.split(' #')[0].strip() for block in blocks for line in block.strip().splitlines()]


class Checkout:
    """A copy of the repository in which the configs that the pages name are of a small model and made data."""

    def __init__(self, folder: Path, scenes: Path) -> None:
        self.folder = folder
        for name in ('mmseg_eomt', 'configs', 'tools'):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        for name in ('eomt_lora_cityscapes', 'datasets/eomt_lora_loveda', 'eomt_cityscapes_1024'):
            config = make_config(scenes, folder / 'work_dirs' / Path(name).name, 'lora' in name, max_iters=STEPS)
            config.dump(folder / 'configs' / f'{name}.py')
        name = 'eomt_lora_dinov2-b_cityscapes_640.py'
        small_recipe(name, 64).dump(folder / 'configs' / name)
        self._make_images()

    def _make_images(self) -> None:
        rng = np.random.default_rng(0)
        (self.folder / 'my_images').mkdir()
        (self.folder / 'my_masks').mkdir()
        for i in range(4):
            ids = np.repeat(np.repeat(rng.integers(0, 3, (6, 8), np.uint8), 10, 0), 10, 1)
            cv2.imwrite(str(self.folder / f'my_images/{i}.jpg'), 60 * cv2.merge([ids] * 3))
            cv2.imwrite(str(self.folder / f'my_masks/{i}.png'), ids)
        cv2.imwrite(str(self.folder / 'one.jpg'), rng.integers(0, 256, (60, 80, 3), np.uint8))
        (self.folder / 'classes.txt').write_text('void 0\nroad 1\ncar 2\n')
        writer = cv2.VideoWriter(str(self.folder / 'drive.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (80, 60))
        for i in range(3):
            writer.write(np.full((60, 80, 3), 80 * i, np.uint8))
        writer.release()

    def run(self, line: str, **env: str) -> str:
        line = line.replace('.py 4', '.py 2').replace('.pth 4', '.pth 2')  # processes
        if 'train.py configs/my_data.py' in line:
            line += f' --cfg-options train_cfg.max_iters={STEPS} param_scheduler.0.warmup_steps="(0,0)"'
            line += f' default_hooks.checkpoint.interval={STEPS} train_cfg.val_interval={STEPS}'
        if 'init_dataset.py' in line:
            (self.folder / 'configs' / 'my_data.py').unlink(missing_ok=True)
        printed = run_line(line, self.folder, PORT=free_port(), **env)
        for name, last in (('eomt_lora_cityscapes', 79608), ('my_data', 8000)):  # the names of a whole run's checkpoints
            work_dir = self.folder / 'work_dirs' / name
            if (work_dir / f'iter_{STEPS}.pth').is_file():
                shutil.copy(work_dir / f'iter_{STEPS}.pth', work_dir / f'iter_{last}.pth')
        return printed


@pytest.fixture(scope='module')
def checkout(scenes, tmp_path_factory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp('checkout') / 'mmseg-eomt', scenes)


@pytest.fixture(scope='module')
def hub(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('hub')
    (folder / HUB_MODEL).mkdir(parents=True)
    torch.save(public_eomt(Sizes(1, **SMALL)), folder / HUB_MODEL / 'pytorch_model.bin')
    return folder


@pytest.mark.slow
def test_every_command_runs_in_its_order(checkout, hub, tmp_path_factory):
    """Each once: the pages share some, and what one writes the next needs."""
    lines = [line for page in ('docs/train.md', 'README.md', *PAGES) for line in commands(page)]
    lines = [line for line in dict.fromkeys(lines) if not line.startswith(tuple(SKIPPED))]
    assert len(lines) > 10
    home = str(tmp_path_factory.mktemp('hf'))
    with serve(hub, hub=True) as (address, _):
        printed = {line: checkout.run(line, HF_ENDPOINT=address, HF_HOME=home, HF_HUB_DISABLE_XET='1') for line in lines}
    for line, log in printed.items():
        if re.search(r'tools/(dist_)?train', line):
            assert f'Saving checkpoint at {STEPS} iterations' in log or '--resume' in line, log[-3000:]
        if 'tools/test.py' in line:
            assert 'mIoU' in log
    for name in ('overlays/0.png', 'labels/3.png', 'overlays/drive.mp4', 'labels/one.png'):
        assert (checkout.folder / 'predictions' / name).is_file()
    assert (checkout.folder / 'queries.png').is_file() and (checkout.folder / 'merged.pth').is_file()


@pytest.mark.slow
def test_the_python_code_of_the_page_on_predicting_runs(checkout):
    (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/predict.md').read_text(encoding='utf-8'), re.S)
    checkout.run('python tools/train.py configs/eomt_lora_cityscapes.py')
    (checkout.folder / 'page.py').write_text(code + 'print(labels.shape)\n')
    assert '(60, 80)' in checkout.run('PYTHONPATH=. python page.py').replace('torch.Size([60, 80])', '(60, 80)')


def test_the_config_of_the_page_on_training_is_the_one_for_that_dataset():
    (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/train.md').read_text(encoding='utf-8'), re.S)
    assert code in (ROOT / 'configs/datasets/eomt_lora_loveda.py').read_text()


def test_no_page_has_commands_that_nothing_runs():
    pages = [p.relative_to(ROOT).as_posix() for p in (*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md'))]
    with_commands = {page for page in pages if commands(page)} - set(PAGES)
    contributing = {line.split('    ')[0].split('#')[0].strip() for line in commands('CONTRIBUTING.md')}
    makefile = (ROOT / 'Makefile').read_text()
    assert all(f'\n{line.removeprefix("make ")}:' in makefile for line in contributing)
    assert with_commands - {'CONTRIBUTING.md'} <= set(ELSEWHERE)
    for page in with_commands - {'CONTRIBUTING.md'}:
        test = ELSEWHERE[page]
        assert test is None or Path(page).name in (ROOT / 'tests' / test).read_text()


def test_every_link_leads_somewhere():
    for file in (*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')):
        text = file.read_text(encoding='utf-8')
        for target in re.findall(r'\]\(([^)\s]+)\)', text):
            path, _, anchor = target.partition('#')
            if '://' in path:
                continue
            page = (file.parent / path) if path else file
            assert page.exists(), f'{file.name}: {target}'
            if anchor:
                titles = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.M)
                anchors = {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}
                assert anchor in anchors, f'{file.name}: {target}'


def test_every_file_that_is_named_exists():
    for page in PAGES + list(ELSEWHERE):
        text = (ROOT / page).read_text(encoding='utf-8')
        found = re.finditer(r'(?<![\w/])(?:configs|tools|docs|benchmarks)/[\w./-]+', text)
        names = {match[0].rstrip('.') for match in found if text[match.end()] not in '{*<'}
        names |= set(re.findall(r'`(eomt\w[\w-]*\.py)`', text))
        ours = {name for name in names if not re.search(r'dataset_converters|my_data|mim/tools', name)}
        missing = [name for name in ours if not (ROOT / name).exists() and not (ROOT / 'configs' / name).exists()]
        assert not missing, f'{page}: {missing}'
