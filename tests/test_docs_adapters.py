"""What the pages on adapters show works as it stands, with small models and made data."""

import json
import re
import shlex
import shutil
from pathlib import Path

import onnx
import pytest
from conftest import ROOT, SMALL_ARCH, main_of, small_options
from domains.made_domains import MADE
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import HOOKS
from test_docs import commands

from mmseg_eomt.adapters import inject, lora_config, save_adapter
from mmseg_eomt.domains.convert import convert
from mmseg_eomt.tasks import load_tasks

PAGES = ('docs/adapter_options.md', 'docs/frozen.md', 'docs/robustness.md', 'docs/tasks.md')
CONFIGS: dict[str, dict] = {  # that the pages name, with what a small model needs besides
    'eomt_demo': {'model.vit.patch_size': 16},
    'eomt_lora_demo': {'model.vit.patch_size': 16},
    'eomt_frozen_demo': {'model.vit.patch_size': 16},
    'eomt_frozen_cityscapes': {},
    'eomt_pmt_dinov3-l_cityscapes_1024': {'model.vit.arch.rope_theta': 100.0, 'model.vit.arch.qkv_bias': 'qv'},
    'eomt_rein_cityscapes': {'model.backbone.num_tokens': 12},
    'eomt_lora_robust_gta5_512': {'custom_hooks.0.blocks': (1, -1)},
}
SMALLER = {  # of the configs that the pages write out
    'warmup_steps=(500, 1000)': 'warmup_steps=(0, 0)',
    "type='ReinViT'": "type='ReinViT', num_tokens=12",
    'blocks=(12, -1)': 'blocks=(1, -1)',
}
ITERS = 1


def shown(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(encoding='utf-8'), re.S)


BLOCKS = [(page, block) for page in PAGES for block in shown(page)]
PROGRAMS = [(page, block) for page, block in BLOCKS if re.search('^(import|from) ', block, re.M)]
HOOK_LINES = [line for _, block in BLOCKS if block.startswith('dict(') for line in block.strip().splitlines()]
WRITTEN = [(page, block) for page, block in BLOCKS if re.match(r'\w+ = ', block) and (page, block) not in PROGRAMS]


def small(name: str, scenes: Path) -> Config:
    """A recipe of ``configs`` with a small model, made data and one iteration."""
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    options = small_options(scenes, Path('work_dirs') / name, ITERS)
    del options['load_from']
    kept = config.train_dataloader.dataset.get('data_root') if 'gta5' in name else str(scenes)
    model = {'model.vit.arch': dict(_delete_=True, **SMALL_ARCH)}
    if 'pmt' not in name:
        model['model.vit.num_joint_blocks'] = 2
    loading = {'model.vit.pretrained': None, 'train_dataloader.dataset.data_root': kept}
    config.merge_from_dict({**options, **model, **loading, **CONFIGS[name]})
    for hook in config.custom_hooks:
        if 'begin_iter' in hook:
            hook.begin_iter = 0
    for scheduler in config.param_scheduler:
        if 'warmup_steps' in scheduler:
            scheduler.warmup_steps = 0 if isinstance(scheduler.warmup_steps, int) else (0, 0)
    return config


@pytest.fixture(scope='module')
def prepared(scenes: Path, base: str, lora: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs, data and checkpoints that the pages speak of."""
    folder = tmp_path_factory.mktemp('pages')
    (folder / 'configs' / 'tasks').mkdir(parents=True)
    for name in CONFIGS:
        small(name, scenes).dump(folder / 'configs' / f'{name}.py')
    shutil.copy(ROOT / 'configs/tasks/eomt_tasks_demo.py', folder / 'configs/tasks')
    for name, checkpoint in (('eomt_demo/iter_600', base), ('signs/iter_600', base), ('eomt_lora_demo/iter_200', lora)):
        (folder / 'work_dirs' / name).parent.mkdir(parents=True)
        shutil.copy(checkpoint, folder / 'work_dirs' / f'{name}.pth')
    shutil.copy(folder / 'configs/eomt_demo.py', folder / 'work_dirs/signs/signs.py')
    model = init_model(str(folder / 'configs/eomt_demo.py'), base, device='cpu')
    inject(model, lora_config(4, 8, 0.0, ['qkv'], split_qkv=True), ['decode_head.class_head'])
    save_adapter(model, folder / 'work_dirs/split/adapters/iter_200')
    for name, make in MADE.values():
        make(folder / 'data' / name)
    shutil.copytree(ROOT / 'configs/_base_', folder / 'configs/_base_')
    images = sorted(scenes.glob('leftImg8bit/val/dusk/*.png'))
    (folder / 'my_images').mkdir()
    for i, image in enumerate(images):
        shutil.copy(image, folder / 'my_images' / f'{i}.png')
    return folder


@pytest.fixture
def folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    return prepared


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES)
def test_every_command_of_the_page_runs(folder, in_process, monkeypatch, page):
    """docs/adapter_options.md, docs/frozen.md, docs/robustness.md, docs/tasks.md."""
    monkeypatch.setattr('sys.argv', ['python'])  # which the toolbox's scripts set
    for line in commands(page):
        python, tool, *arguments = shlex.split(line)
        assert python == 'python'
        fewer = ['--corruptions', 'fog', '--severities', '1'] if 'robustness' in tool else []
        in_process(main_of(tool), *arguments, *fewer)
        if tool == 'tools/train.py':
            written = [path for path in folder.glob(f'**/iter_{ITERS}.pth') if 'shown' not in path.parts]
            assert len(written) == 1, written
            written[0].unlink()
    if page == 'docs/robustness.md':
        results = json.loads((folder / 'work_dirs/robustness/results.json').read_text())
        assert 'bdd100k' in str(results)
    if page == 'docs/tasks.md':
        for file in ('day/labels/1.png', 'day/overlays/1.png', 'dusk/labels/1.png'):
            assert (folder / 'predictions' / file).is_file()
        assert [output.name for output in onnx.load('tasks.onnx').graph.output] == ['scores_day', 'scores_dusk']


@pytest.mark.slow
@pytest.mark.parametrize('page', sorted({page for page, _ in PROGRAMS}))
def test_the_programs_of_the_page_run(folder, page):
    for program in (block for place, block in PROGRAMS if place == page):
        exec(program, {})


@pytest.mark.slow
@pytest.mark.parametrize(('page', 'block'), [pytest.param(*shown, id=f'{shown[0]}{i}') for i, shown in enumerate(WRITTEN)])
def test_the_configs_of_the_page_run(folder, page, block):
    for given, small_enough in SMALLER.items():
        block = block.replace(given, small_enough)
    if 'tasks=' in block:
        (folder / 'configs/tasks/shown.py').write_text(block)
        assert list(load_tasks('configs/tasks/shown.py', device='cpu').tasks) == ['day', 'dusk', 'signs']
        return
    (folder / 'configs/shown.py').write_text(block if '_base_' in block else f"_base_ = 'eomt_lora_demo.py'\n{block}")
    config = Config.fromfile('configs/shown.py')
    config.merge_from_dict({'work_dir': 'work_dirs/shown', 'train_cfg.val_begin': ITERS + 1})
    if 'DomainsDataset' in block:
        convert('gta5', 'data/gta')
        config.train_cfg.val_begin = ITERS
    runner = Runner.from_cfg(config)
    runner.train()
    if 'DomainsDataset' in block:
        assert {'val/mIoU', 'val/mIoU/cityscapes', 'val/mIoU/bdd100k'} <= set(runner.message_hub.log_scalars)


@pytest.mark.parametrize('line', HOOK_LINES)
def test_the_hooks_of_the_page_build(line):
    assert HOOKS.build(eval(line)).make_config()
