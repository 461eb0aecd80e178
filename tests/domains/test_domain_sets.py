"""Several domains in one evaluation: what they read, and a metric of each that is what IoUMetric says."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_config
from made_domains import MADE
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

from mmseg_eomt import domains
from mmseg_eomt.data.check import samples_of

DOMAINS = ROOT / 'configs' / '_base_' / 'domains'
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def sets_of(name: str, root: Path) -> dict[str, dict]:
    """The datasets of a file in configs/_base_/domains, where a test has written them."""
    config = Config.fromfile(DOMAINS / f'{name}.py').to_dict()
    return {key: dict(value, data_root=str(root)) for key, value in config.items()}


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
    register_all_modules()
    roots = {name: tmp_path_factory.mktemp('data') / folder for name, (folder, _) in MADE.items()}
    return {name: (roots[name], MADE[name][1](roots[name])) for name in MADE}


@pytest.fixture(scope='module')
def three(data) -> dict[str, dict]:
    found = {name: sets_of(name, data[name][0]) for name in ('cityscapes', 'bdd100k', 'urbansyn')}
    return dict(
        cityscapes=found['cityscapes']['cityscapes_val'],
        bdd100k=found['bdd100k']['bdd100k_val'],
        urbansyn=found['urbansyn']['urbansyn_train'],
    )


@pytest.mark.parametrize('name', ['cityscapes', 'bdd100k', 'acdc', 'dark_zurich', 'nighttime_driving', 'urbansyn'])
def test_a_domain_is_read_as_it_is_downloaded(data, name):
    root, labels = data[name]
    read = {}
    for key, config in sets_of(name, root).items():
        if not key.endswith('_train') or name == 'urbansyn':
            dataset = DATASETS.build(dict(config, pipeline=PIPELINE))
            for i in range(len(dataset)):
                sample = dataset[i]['data_samples']
                read[sample.img_path] = sample.gt_sem_seg.data[0].numpy()
    assert read.keys() == labels.keys()
    for path, label in labels.items():
        np.testing.assert_array_equal(read[path], label)


def test_every_file_of_domains_has_data_in_its_layout():
    assert {path.stem.removesuffix('_19') for path in DOMAINS.glob('*.py')} == {*MADE}


def test_samples_carry_their_domain_and_the_first_ones_classes(three):
    dataset = domains.DomainsDataset(three, pipeline=PIPELINE)
    found = [dataset[i]['data_samples'].domain for i in range(len(dataset))]
    assert found == ['cityscapes'] * 3 + ['bdd100k'] * 2 + ['urbansyn'] * 2
    assert dataset[-1]['data_samples'].domain == 'urbansyn'
    assert dataset.metainfo['classes'][13] == 'car'


def test_test_time_augmentation_keeps_the_domain(three):
    views = [
        [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
        PIPELINE[1:2],
        PIPELINE[2:],
    ]
    dataset = domains.DomainsDataset(three, pipeline=[PIPELINE[0], dict(type='TestTimeAug', transforms=views)])
    assert [sample.domain for sample in dataset[3]['data_samples']] == ['bdd100k'] * 2


def test_the_check_of_files_sees_all_domains_with_their_label_maps(three):
    samples = list(samples_of(domains.DomainsDataset(three, pipeline=PIPELINE), 19, 255))
    assert len(samples) == 7
    assert samples[-1].rule.label_map == {19: 255} and samples[0].rule.label_map is None


def test_domains_of_other_classes_are_refused_by_name(three):
    other = dict(type='ADE20KDataset', data_root=three['bdd100k']['data_root'], lazy_init=True)
    with pytest.raises(ValueError, match=r'ade20k has 150 .*cityscapes has 19'):
        domains.DomainsDataset(dict(three, ade20k=other), lazy_init=True)
    with pytest.raises(ValueError, match='at least one domain'):
        domains.DomainsDataset({})


@pytest.fixture(scope='module')
def config(three, tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp('domains')
    config = make_config(folder, folder / 'run', max_iters=1)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.dataset = dict(type='DomainsDataset', domains=three, pipeline=loader.dataset.pipeline)
    config.val_evaluator = config.test_evaluator = dict(type='DomainIoUMetric')
    return config


@pytest.fixture(scope='module')
def run(config) -> tuple[Runner, dict[str, float], str]:
    """A run that validates, with its best checkpoint; metrics of a test, and the log."""
    config.default_hooks.checkpoint.save_best = 'mIoU'
    runner = Runner.from_cfg(config)
    runner.train()
    metrics = runner.test()
    return runner, metrics, next(Path(config.work_dir).rglob('*.log')).read_text()


def test_each_domain_has_the_numbers_of_the_toolboxs_metric_alone(run, config):
    runner, metrics, _ = run
    for name, dataset in config.test_dataloader.dataset.domains.items():
        alone = dict(config.test_dataloader, dataset=dict(dataset, pipeline=config.test_dataloader.dataset.pipeline))
        loop = runner.build_test_loop(dict(type='TestLoop', dataloader=alone, evaluator=dict(type='IoUMetric')))
        for key, value in loop.run().items():
            if 'time' not in key:
                assert metrics[f'{key}/{name}'] == value
    assert metrics['mIoU'] == pytest.approx(np.mean([metrics[f'mIoU/{name}'] for name in domains_of(config)]), abs=0.005)
    assert next(iter(metrics)) == 'mIoU'


def domains_of(config: Config) -> list[str]:
    return list(config.test_dataloader.dataset.domains)


def test_the_log_has_a_table_of_each_domain_and_the_mean_picks_the_best(run, config):
    _, _, log = run
    assert re.findall(r'(\w+) \(\d images\):', log)[:3] == domains_of(config)
    assert log.count('per class results') >= 3
    assert list(Path(config.work_dir).glob('best_mIoU_iter_1.pth'))


def test_images_that_a_sampler_repeats_count_once(run, monkeypatch):
    """Two processes, seven images: the second one predicts the first image again."""
    runner, metrics, _ = run
    dataset = runner.test_dataloader.dataset
    parts = []
    for rank in range(2):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        metric = domains.DomainIoUMetric()
        metric.dataset_meta = dataset.metainfo
        for i in DefaultSampler(dataset, shuffle=False):
            batch = runner.test_dataloader.collate_fn([dataset[i]])
            samples = runner.model.test_step(batch)
            metric.process(batch, [sample.to_dict() for sample in samples])
        parts.append(metric.results)
    assert list(map(len, parts)) == [4, 4]
    ordered = [result for pair in zip(*parts) for result in pair][: len(dataset)]  # as mmengine gathers them
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = metric.compute_metrics(ordered)
    assert found == {key: value for key, value in metrics.items() if 'time' not in key}


def test_a_domain_without_labels_is_warned_of_and_not_in_the_means(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr('mmseg_eomt.domains.metric.print_log', lambda message, *_: said.append(message))
    metric = domains.DomainIoUMetric()
    metric.dataset_meta = dict(classes=('road', 'car'))
    areas = [torch.tensor([one, 0.0]) for one in (1.0, 2.0, 1.0, 2.0)]  # of the second class nothing
    found = metric.compute_metrics([('day', areas), ('night', [torch.zeros(2)] * 4)])
    assert found['mIoU'] == found['mIoU/day'] == 50
    assert np.isnan(found['mIoU/night'])
    assert [line for line in said if line.startswith('No pixel of night has a label that counts')]


def test_a_dataset_without_domains_and_predictions_to_write_are_refused(run):
    runner, _, _ = run
    metric = domains.DomainIoUMetric()
    metric.dataset_meta = runner.test_dataloader.dataset.metainfo
    with pytest.raises(ValueError, match=r'image\.png is of no domain'):
        metric.process({}, [dict(img_path='image.png')])
    with pytest.raises(ValueError, match='writes no predictions'):
        domains.DomainIoUMetric(output_dir='here')
    assert isinstance(runner.test_evaluator, Evaluator)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs' / 'domains').glob('*.py')), ids=lambda path: path.stem)
def test_a_recipe_of_domains_changes_what_it_is_evaluated_on(path):
    config = Config.fromfile(path)
    plain = Config.fromfile(ROOT / 'configs' / path.name)
    assert config.test_dataloader == config.val_dataloader
    assert config.val_evaluator.type == 'DomainIoUMetric' and config.val_dataloader.batch_size == 1
    dataset = config.val_dataloader.dataset
    assert dataset.pipeline == plain.val_dataloader.dataset.pipeline
    built = domains.DomainsDataset(dataset.domains, dataset.pipeline, lazy_init=True)
    assert len(built.metainfo['classes']) == config.model.decode_head.num_classes
    assert config.train_dataloader == plain.train_dataloader
