"""A resumed run is the run that was never stopped, bit for bit, whatever its kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, run_tool
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, loops

WORKERS_ARE_SKIPPED = hasattr(
    loops._InfiniteDataloaderIterator, 'skip_iter'
)  # onedl-mmengine draws no augmentations for them


class _Stop(Hook):
    """End a run as Ctrl-C does, after an iteration; an evaluation before it draws of all random numbers."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, *_, **__) -> None:
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


class NoteBatches(Hook):
    """Note each loss and each batch, and draw within evaluations."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict) -> None:
        names = [Path(sample.img_path).name for sample in data_batch['data_samples']]
        pixels = [int(image.long().sum()) for image in data_batch['inputs']]
        self.seen.append((runner.iter + 1, names, pixels, float(outputs['loss'])))

    def before_val_epoch(self, runner: Runner) -> None:
        np.random.rand(3)
        torch.rand(3)


def augmented(config: Config) -> Config:
    """With augmentations that draw random numbers."""
    pipeline = config.train_dataloader.dataset.pipeline
    steps = [dict(type='RandomFlip', prob=0.5), dict(type='EoMTColorJitter')]
    config.train_dataloader.dataset.pipeline = [*pipeline[:-1], *steps, pipeline[-1]]
    return config


def train(config: Config, stop: int | None = None) -> tuple[Runner, list[tuple]]:
    runner = Runner.from_cfg(augmented(config))
    note = NoteBatches()
    runner.register_hook(note, priority='LOW')
    if stop is None:
        runner.train()
    else:
        runner.register_hook(_Stop(stop), priority='LOWEST')
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    # ends worker processes at once; the garbage collector closes their queues first and then waits 5 s for each
    runner.train_dataloader._iterator = runner.train_loop.dataloader_iterator = None
    return runner, note.seen


def assert_exact(small_config, stop: int = 3, resumed_at: int = 2, max_iters: int = 4, **changes) -> None:
    changes = {'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 2, **changes, 'max_iters': max_iters}
    whole, expected = train(small_config(name='whole', **changes))
    train(small_config(name='stopped', **changes), stop)
    resumed, seen = train(small_config(name='stopped', resume=True, **changes))
    assert seen and seen == [one for one in expected if one[0] > resumed_at]
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(one, other), name
    states = [runner.optim_wrapper.optimizer.state_dict()['state'] for runner in (whole, resumed)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())


def test_full_fine_tuning(small_config):
    assert_exact(small_config)


def test_a_config_without_any_of_the_plugins_hooks(small_config):
    assert_exact(small_config, custom_hooks=[])


@pytest.mark.parametrize('save', ['trainable', 'full'])
def test_lora(small_config, base, save):
    changes = {'custom_hooks.0.save': save, 'custom_hooks.0.lora_dropout': 0.1}
    assert_exact(small_config, lora=True, load_from=base, **changes)


def test_lora_from_minor_directions_with_an_average(small_config, base):
    hooks = [dict(type='LoRAHook', peft=dict(init_lora_weights='minor')), dict(type='EMAHook', momentum=0.3)]
    assert_exact(small_config, lora=True, load_from=base, custom_hooks=hooks)


@pytest.mark.skipif(WORKERS_ARE_SKIPPED, reason='onedl-mmengine')
def test_with_worker_processes(small_config):
    assert_exact(small_config, **{'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True})


def test_a_run_without_a_seed_goes_on_with_its_own(small_config):
    """The order of the data depends on it."""
    changes = {'randomness': dict(seed=None), 'default_hooks.checkpoint.interval': 2}
    first, expected = train(small_config(**changes))
    (Path(first.work_dir) / 'last_checkpoint').write_text('iter_2.pth')
    resumed, seen = train(small_config(resume=True, **changes))
    assert resumed.seed == first.seed
    assert seen == expected[2:]


@pytest.mark.parametrize(('counts', 'last'), [(1, 3), (8, 2)])
def test_a_loop_by_epochs(small_config, counts, last):
    """An optimizer step of two epochs cannot be resumed after the third."""

    def config(name: str, resume: bool = False) -> Config:
        made = small_config(name=name, resume=resume)
        made.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=1)
        made.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        made.default_hooks.checkpoint.update(by_epoch=True, interval=1)
        made.optim_wrapper.accumulative_counts = counts
        return made

    _, expected = train(config('whole'))
    train(config('stopped'), stop=14)  # in the fourth epoch of four iterations
    _, seen = train(config('stopped', resume=True))
    assert len(expected) == 16
    assert seen == expected[4 * last :]


def test_gradient_accumulation(small_config, capfd):
    """An interval of three would leave the gradients of an iteration out; the evaluation after it does not save either."""
    changes = {
        'optim_wrapper.accumulative_counts': 2,
        'default_hooks.checkpoint.interval': 3,
        'default_hooks.checkpoint.save_best': 'mIoU',
        'train_cfg.val_interval': 5,
    }
    assert_exact(small_config, stop=6, resumed_at=4, max_iters=9, **changes)
    said = 'Checkpoints are saved every 4 iterations, not every 3'
    assert ''.join(capfd.readouterr()).count(said) == 3  # once in each run


def test_the_last_checkpoint_of_a_run_is_saved_whatever_its_number(small_config):
    changes = {'optim_wrapper.accumulative_counts': 2, 'default_hooks.checkpoint.interval': 2}
    runner, _ = train(small_config(max_iters=3, **changes))
    assert sorted(path.name for path in Path(runner.work_dir).glob('*.pth')) == ['iter_2.pth', 'iter_3.pth']


@pytest.mark.slow
def test_two_processes_go_on_with_the_random_numbers_of_each(small_config, config_file, tmp_path):
    """Each draws as many as its images need, so that their states differ."""
    parameters = []
    for name, stop in (('whole', None), ('stopped', 3)):
        config = small_config(name=name, max_iters=4)
        config.merge_from_dict({'default_hooks.checkpoint.interval': 2})
        config.custom_imports['imports'] += ['save_each_rank', 'killed_while_saving']
        config.custom_hooks.append(dict(type='SaveEachRank', out=str(tmp_path)))
        extra = dict(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}')
        if stop:
            config.custom_hooks.append(dict(type='KilledAtIteration', at_iter=stop))
            done = run_tool('tools/dist_train.sh', config_file(config), 2, check=False, PORT=free_port(), **extra)
            assert done.returncode
            config.custom_hooks.pop()
        log = run_tool('tools/dist_train.sh', config_file(config), 2, '--resume', PORT=free_port(), **extra).stdout
        assert ('resumed epoch: 0, iter: 2' if stop else 'There is no checkpoint to resume') in log
        parameters.append([torch.load(tmp_path / f'rank_{rank}.pth', weights_only=True)['parameters'] for rank in (0, 1)])
    for rank in (0, 1):
        assert all(torch.equal(value, parameters[1][rank][name]) for name, value in parameters[0][rank].items())
    states = torch.load(Path(config.work_dir) / 'iter_2.pth', weights_only=True)['random_state']
    assert len(states) == 2
