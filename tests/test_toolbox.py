"""MMSegmentation's own tools on our models: the commands of docs/toolbox.md run as they stand, in their order."""

import json
import os
import re
import shutil
import stat
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, make_config, run_line, run_tool
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model

PAGE = (ROOT / 'docs' / 'toolbox.md').read_text(encoding='utf-8')
LOSSES = {f'decode.{layer}loss_{kind}' for layer in ('', 'd0.', 'd1.') for kind in ('cls', 'mask', 'dice')}
LOGGED = {*LOSSES, 'mask_prob_0', 'mask_prob_1', 'decode.matched_queries'}
SRUN = """#!/usr/bin/env bash
echo "srun $*"
for arg; do case $arg in --ntasks=*) tasks=${arg#*=};; esac; done
while [[ $1 == -* ]]; do [ "$1" = -p ] && shift; shift; done
export SLURM_NTASKS=$tasks SLURM_NODELIST=here
for ((i = 1; i < tasks; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait -n
"""


class Commands:
    """The page's commands, run in a folder that has the repository's tools, its configs and a small model's data."""

    def __init__(self, folder: Path, scenes: Path) -> None:
        self.folder, self.output = folder, {}
        (folder / 'tools').symlink_to(ROOT / 'tools')
        shutil.copytree(ROOT / 'configs', folder / 'configs')
        config = make_config(scenes, folder / 'work_dirs' / 'eomt_tiny_cityscapes', max_iters=3)
        config.merge_from_dict(Config.fromstring(*re.findall(r'```python\n(.*?)```', PAGE, re.S), '.py').to_dict())
        scales = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((128, 64), (192, 96))]
        config.tta_pipeline[1].transforms[0] = scales
        config.dump(folder / 'configs' / 'eomt_tiny_cityscapes.py')
        dataset = dict(type='RepeatDataset', times=50, dataset=config.test_dataloader.dataset)
        config.merge_from_dict(dict(test_dataloader=dict(dataset=dict(_delete_=True, **dataset))))
        config.dump(folder / 'configs' / 'repeated.py')
        for name, text in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho 127.0.0.1\n')):
            file = folder / 'bin' / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def run(self) -> None:
        path = f'{self.folder / "bin"}{os.pathsep}{os.environ["PATH"]}'
        env = dict(PATH=path, MASTER_PORT=free_port(), MPLBACKEND='agg')
        for block in re.findall(r'```bash\n(.*?)```', PAGE, re.S):
            for line in block.strip().splitlines():
                if 'Wandb' in line and find_spec('wandb') is None:
                    continue
                if 'benchmark' in line:
                    line = line.replace('eomt_tiny_cityscapes.py', 'repeated.py')  # 200 images
                self.output[line] = run_line(line, self.folder, **env)
                if 'train.py configs' in line and 'iter_3.pth' in os.listdir(self.work_dir):
                    shutil.copy(self.work_dir / 'iter_3.pth', self.work_dir / 'iter_1200.pth')

    @property
    def work_dir(self) -> Path:
        return self.folder / 'work_dirs' / 'eomt_tiny_cityscapes'

    def printed_by(self, name: str) -> str:
        found = [output for line, output in self.output.items() if name in line]
        assert len(found) == 1, f'{name}: {len(found)} of {list(self.output)}'
        return found[0]

    def pictures(self, folder: str) -> list[np.ndarray]:
        return [cv2.imread(str(path)) for path in sorted((self.folder / 'work_dirs' / folder).rglob('*.png'))]


@pytest.fixture(scope='module')
def commands(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    commands = Commands(tmp_path_factory.mktemp('toolbox'), scenes)
    commands.run()
    return commands


@pytest.mark.slow
def test_toolbox_lists_the_scripts_it_runs(commands):
    listed = commands.printed_by('lists them all').split('Scripts:')[1].split()
    named = re.findall(r'toolbox\.py (\w+/\w+)', PAGE)
    assert len(named) == 6
    assert {*named, 'train', 'test'} <= set(listed)


def test_a_script_that_the_toolbox_does_not_have_is_named():
    done = run_tool('tools/toolbox.py', 'get_flops', check=False)
    assert done.returncode == 1
    assert 'has no script get_flops' in done.stdout
    assert '\n  analysis_tools/get_flops\n' in done.stdout


@pytest.mark.slow
def test_print_config_writes_a_config_that_builds_the_same(commands):
    assert "type='LoRAHook'" in commands.printed_by('print_config')
    written = Config.fromfile(commands.folder / 'example.py')
    assert written.to_dict() == Config.fromfile(ROOT / 'configs' / 'eomt_lora_cityscapes.py').to_dict()


@pytest.mark.slow
def test_browse_dataset_draws_every_training_image(commands):
    commands.printed_by('browse_dataset')
    shapes = [picture.shape for picture in commands.pictures('browse')]
    assert shapes == [(64, 64, 3)] * 8


def hand_count(side: int, patch: int, dims: int, layers: int, joint: int, queries: int, classes: int, prefix: int) -> int:
    """Multiply-adds of an EoMT, attention included; norms as mmengine counts them, five for a number."""
    patches = (side // patch) ** 2
    total = patches * 3 * patch**2 * dims
    for layer in range(layers):
        tokens = patches + prefix + (queries if layer >= layers - joint else 0)
        total += 12 * tokens * dims**2 + 2 * tokens**2 * dims + 2 * 5 * tokens * dims
    total += 5 * tokens * dims + queries * dims * (classes + 1 + 3 * dims)
    for _ in range(2):  # the two scale blocks of a patch of 16
        total += patches * 4 * dims**2
        patches *= 4
        total += patches * (9 + 5) * dims
    return total + queries * patches * dims


@pytest.mark.slow
def test_get_flops_agrees_with_a_count_by_hand(commands):
    printed = commands.printed_by('get_flops')
    expected = hand_count(640, 16, 384, layers=12, joint=3, queries=100, classes=19, prefix=5)
    assert f'Flops: {expected / 1e9:.3f}G' in printed
    assert f'{expected / 1e9:.1f} G' in PAGE


@pytest.mark.slow
def test_benchmark_gives_a_speed(commands):
    assert float(re.search(r'Average fps of 1 evaluations: (.+)', commands.printed_by('benchmark')).group(1)) > 0
    assert len(list((commands.folder / 'work_dirs' / 'speed').glob('fps_*.json'))) == 1


@pytest.mark.slow
def test_an_evaluation_with_tta_writes_labels_and_pictures(commands):
    assert 'mIoU' in commands.printed_by('--tta')
    assert [labels.shape[:2] for labels in commands.pictures('labels')] == [(64, 128)] * 4
    assert [picture.shape for picture in commands.pictures('pictures')] == [(64, 256, 3)] * 4  # label and prediction


@pytest.mark.slow
def test_confusion_matrix_draws_the_label_maps(commands):
    commands.printed_by('confusion_matrix')
    assert (commands.folder / 'work_dirs' / 'confusion' / 'confusion_matrix.png').stat().st_size > 100_000


@pytest.mark.slow
def test_analyze_logs_draws_losses_and_mask_probabilities(commands):
    assert commands.printed_by('analyze_logs').count('plot curve of') == 3
    assert cv2.imread(str(commands.folder / 'work_dirs' / 'curves.png')).std() > 0


@pytest.mark.slow
def test_log_and_json_log_hold_losses_of_each_layer_mask_probabilities_and_matched_queries(commands):
    (file,) = (path for path in commands.work_dir.glob('*/vis_data/2*.json') if 'loss' in path.read_text())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line['step'] for line in lines] == [1, 2, 3, 3]
    assert all(line.keys() >= LOGGED for line in lines[:3])
    assert lines[3].keys() >= {'mIoU', 'mAcc', 'aAcc'}
    assert all(1 <= line['decode.matched_queries'] <= 12 for line in lines[:3])
    (log,) = (path.read_text() for path in commands.work_dir.glob('*/2*.log') if 'Iter(train)' in path.read_text())
    assert all(f'{name}: ' in log for name in LOGGED)


@pytest.mark.slow
def test_tensorboard_holds_what_the_json_log_does(commands):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    (folder,) = {
        path.parent
        for path in commands.work_dir.rglob('events.out*')
        if list(path.parent.glob('2*.json')) and path.stat().st_size > 1000
    }
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()['scalars']) >= LOGGED | {'mIoU', 'loss', 'lr'}
    assert [event.step for event in events.Scalars('decode.d0.loss_mask')] == [1, 2, 3]
    written = [json.loads(line) for line in next(folder.glob('2*.json')).read_text().splitlines()[:3]]
    shown = [event.value for event in events.Scalars('decode.matched_queries')]
    assert shown == pytest.approx([line['decode.matched_queries'] for line in written])


@pytest.mark.slow
def test_wandb_takes_notes_offline(commands):
    pytest.importorskip('wandb')
    assert 'wandb sync' in commands.printed_by('Wandb')
    (notes,) = (commands.folder / 'work_dirs' / 'wandb').rglob('run-*.wandb')
    held = notes.read_bytes()
    assert all(name.encode() in held for name in LOGGED | {'mIoU'})


@pytest.mark.slow
def test_slurm_train_starts_a_process_a_gpu(commands):
    log = commands.printed_by('slurm_train.sh')
    called = re.search(r'srun -p PARTITION --job-name=JOB_NAME --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 (.*)', log).group(
        1
    )
    assert 'tools/train.py configs/eomt_tiny_cityscapes.py --launcher slurm --work-dir work_dirs/slurm' in called
    assert 'Distributed training: True' in log and 'GPU number: 2' in log
    assert (commands.folder / 'work_dirs' / 'slurm' / 'iter_3.pth').is_file()


def test_slurm_train_says_how_it_is_called():
    done = run_tool('tools/slurm_train.sh', check=False)
    assert done.returncode == 2
    assert 'tools/slurm_train.sh PARTITION JOB_NAME CONFIG' in done.stdout


@pytest.fixture
def image(scenes) -> Path:
    return next(scenes.glob('leftImg8bit/val/day/*.png'))


def test_a_window_that_covers_the_image_gives_what_the_whole_image_gives(small_config, base, image):
    scores = {}
    for name, change in {
        'whole': dict(mode='whole'),
        'one window': dict(mode='slide', crop_size=(64, 128), stride=(64, 128)),
        'three windows': dict(mode='slide', crop_size=(64, 64), stride=(32, 32)),
    }.items():
        config = small_config(**{f'model.test_cfg.{key}': value for key, value in change.items()})
        scores[name] = inference_model(init_model(config, base, device='cpu'), str(image)).seg_logits.data
    assert {part.shape for part in scores.values()} == {(19, 64, 128)}
    assert torch.allclose(scores['one window'], scores['whole'], rtol=0, atol=1e-5 * float(scores['whole'].abs().max()))
    assert scores['three windows'].isfinite().all()
    assert not torch.allclose(scores['three windows'], scores['whole'], rtol=1e-3)  # a window sees itself alone


def test_the_inferencer_takes_arrays_files_and_folders_and_writes_what_it_finds(
    small_config, config_file, base, image, tmp_path
):
    inferencer = MMSegInferencer(str(config_file(small_config())), base, device='cpu')
    array = inferencer(cv2.imread(str(image)))['predictions']
    file = inferencer(str(image), out_dir=str(tmp_path / 'out'), img_out_dir='vis', pred_out_dir='pred')['predictions']
    folder = inferencer(str(image.parent), out_dir=str(tmp_path / 'all'))['predictions']
    assert array.shape == (64, 128)
    assert np.array_equal(array, file)
    place = sorted(os.listdir(image.parent)).index(image.name)
    assert len(folder) == 2 and np.array_equal(folder[place], array)
    (written,) = (tmp_path / 'out' / 'pred').iterdir()
    assert np.array_equal(cv2.imread(str(written), cv2.IMREAD_GRAYSCALE), array)
    assert all(len(list((tmp_path / 'all' / part).iterdir())) == 2 for part in ('vis', 'pred'))
