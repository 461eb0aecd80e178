"""The configs on the toolbox's dataset files train and evaluate on data in each dataset's layout."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, SMALL_ARCH
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

from mmseg_eomt.models.segmentor import share_vit

CONFIGS = sorted((ROOT / 'configs' / 'datasets').glob('*.py'))


def single_datasets(config: ConfigDict) -> list[ConfigDict]:
    return list(config.datasets) if config.type == 'ConcatDataset' else [config]


def write_data(config: ConfigDict) -> None:
    """Two pairs where a dataset's config looks for its files; odd ones are masks of the last class alone."""
    root = Path(config.data_root)
    folders = [root / config.data_prefix[name] for name in ('img_path', 'seg_map_path')]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    names = [f'{folders[0].name}_{i}' for i in range(2)]
    if 'ann_file' in config:
        (root / config.ann_file).parent.mkdir(parents=True, exist_ok=True)
        (root / config.ann_file).write_text('\n'.join(names) + '\n')
    dataset = DATASETS.build(dict(config, lazy_init=True, pipeline=[]))
    num_ids = len(dataset.metainfo['classes']) + dataset.reduce_zero_label
    for i, name in enumerate(names):
        ids = np.repeat(np.arange(96 * 8).reshape(96, 8) % num_ids, 12, 1) if i == 0 else np.full((96, 96), num_ids - 1)
        label = ids.astype(np.uint8)
        cv2.imwrite(str(folders[0] / (name + dataset.img_suffix)), cv2.merge([label] * 3))
        cv2.imwrite(str(folders[1] / (name + dataset.seg_map_suffix)), label)


def test_there_is_one_for_each_dataset():
    names = [path.stem.removeprefix('eomt_lora_') for path in CONFIGS]
    assert names == [
        'ade20k',
        'bdd100k',
        'cityscapes',
        'coco_stuff',
        'loveda',
        'mapillary',
        'pascal_context',
        'pascal_voc12',
    ]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_it_is_three_lines_on_the_toolboxs_file_and_trains(path, tmp_path):
    register_all_modules()
    lines = [line for line in path.read_text().splitlines() if not line.startswith('#')]
    assert len(lines) <= 3
    config = Config.fromfile(path)
    assert config.train_dataloader.batch_size * config.optim_wrapper.accumulative_counts == 16
    model = share_vit(config.model)
    assert model['backbone']['img_size'] == model['test_cfg'].crop_size == config.crop_size
    assert model['data_preprocessor']['size'] == config.crop_size
    for part in ('backbone', 'decode_head'):
        config.model[part].update(arch=SMALL_ARCH, init_cfg=None, num_joint_blocks=2)
    config.model.decode_head.update(num_queries=8, num_points=64)
    # small pictures and crops; the pipeline is the toolbox's
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=1)
        for dataset in single_datasets(loader.dataset):
            dataset.data_root = str(tmp_path)
            for step in dataset.pipeline:
                step.update({key: (64, 64) for key in ('crop_size', 'size', 'scale') if key in step})
            write_data(dataset)
    config.merge_from_dict(
        {
            'model.backbone.img_size': (64, 64),
            'model.data_preprocessor.size': (64, 64),
            'model.test_cfg': dict(crop_size=(64, 64), stride=(64, 64)),
            'param_scheduler.0.warmup_steps': (0, 0),
            'optim_wrapper.accumulative_counts': 1,
            'train_cfg.max_iters': 2,
            'work_dir': str(tmp_path / 'run'),
            'experiment_name': path.stem,
        }
    )

    runner = Runner.from_cfg(config)
    runner.train()

    assert runner.model.decode_head.num_classes == len(runner.val_dataloader.dataset.metainfo['classes'])
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 0
    assert (tmp_path / 'run' / 'iter_2.pth').exists()
