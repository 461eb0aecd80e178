"""``--resume`` goes on with this run or starts it, and says in one sentence why it cannot."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import free_port, make_config, run_tool
from mmengine.runner import Runner

from mmseg_eomt.engine.resume import last_whole_checkpoint


@pytest.fixture(scope='module')
def trained(scenes, tmp_path_factory) -> Path:
    """The work directory of a full run of two iterations."""
    runner = Runner.from_cfg(make_config(scenes, tmp_path_factory.mktemp('trained') / 'run', max_iters=2))
    runner.train()
    return Path(runner.work_dir)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it, where the runs of a test are."""
    return Path(shutil.copytree(trained, tmp_path / 'run'))


def change(path: Path, edit) -> None:
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path)


@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
@pytest.mark.parametrize('torn', [False, True], ids=['empty', 'torn'])
def test_resume_starts_a_run_that_has_no_checkpoint_from_load_from(small_config, base, tmp_path, capfd, lora, torn):
    """The other run, which is at iteration 1 here, is not gone on with."""
    if torn:
        (tmp_path / 'run').mkdir()
        (tmp_path / 'run' / 'iter_1.pth').write_bytes(Path(base).read_bytes()[:1000])
        (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'iter_1.pth'))
    whole = Runner.from_cfg(small_config(lora=lora, load_from=base, max_iters=1, name='whole'))
    whole.train()
    capfd.readouterr()
    resumed = Runner.from_cfg(small_config(lora=lora, load_from=base, max_iters=1, resume=True))
    resumed.train()
    said = ''.join(capfd.readouterr())
    assert f'There is no checkpoint to resume in {tmp_path / "run"}: the run starts from load_from={base}' in said
    assert ('is no whole checkpoint' in said) == torn
    assert all(torch.equal(one, other) for one, other in zip(whole.model.parameters(), resumed.model.parameters()))


def test_resume_without_any_checkpoint_starts_from_init_cfg(small_config, config_file):
    log = run_tool('tools/train.py', config_file(small_config(max_iters=1)), '--resume').stdout
    assert 'no checkpoint to resume' in log and 'the run starts from the weights that init_cfg names' in log
    assert 'Iter(train) [1/1]' in log


def test_resume_as_an_option_of_the_config_is_refused_since_the_toolbox_drops_it(small_config, config_file):
    done = run_tool('tools/train.py', config_file(small_config()), '--cfg-options', 'resume=True', check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith('train: resume=… has no effect here')


def test_resume_from_a_checkpoint_of_this_run_that_is_named(small_config, run):
    shutil.copy(run / 'iter_2.pth', run / 'iter_1.pth')
    change(run / 'iter_1.pth', lambda checkpoint: checkpoint['meta'].update(iter=1))
    runner = Runner.from_cfg(small_config(load_from=str(run / 'iter_1.pth'), resume=True, max_iters=4))
    runner.train()
    assert runner._load_from == str(run / 'iter_1.pth')


def test_resume_from_adapters_in_a_folder_starts_a_run_from_them(small_config, lora):
    folder = str(Path(lora).parent / 'adapters' / 'iter_2')
    runner = Runner.from_cfg(small_config(lora=True, load_from=folder, resume=True, max_iters=1))
    runner.train()
    assert runner.iter == 1


def test_the_last_checkpoint_is_the_one_that_the_run_has_named(lora, tmp_path):
    """Whatever the files' times are, which a copy of the folder changes."""
    for number in (2, 4, 6):
        shutil.copy(lora, tmp_path / f'iter_{number}.pth')
    runner = SimpleNamespace(work_dir=str(tmp_path), logger=logging.getLogger())
    assert last_whole_checkpoint(runner).name == 'iter_6.pth'
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/iter_4.pth')
    (tmp_path / 'iter_2.pth').touch()
    assert last_whole_checkpoint(runner).name == 'iter_4.pth'
    (tmp_path / 'iter_4.pth').write_bytes(b'PK')
    assert last_whole_checkpoint(runner).name == 'iter_2.pth'


@pytest.mark.parametrize(
    'text', ['', '/run/iter_1', '/gone/iter_9.pth', 'iter_6.p', '.', '..', '\0\xff', 'x' * 5000, '\n', 'last_checkpoint']
)
def test_a_damaged_last_checkpoint_file_is_passed_over(lora, tmp_path, text):
    for number in (1, 6):
        shutil.copy(lora, tmp_path / f'iter_{number}.pth')
    (tmp_path / 'last_checkpoint').write_bytes(text.encode('latin-1'))
    runner = SimpleNamespace(work_dir=str(tmp_path), logger=logging.getLogger())
    assert last_whole_checkpoint(runner).name == 'iter_6.pth'


def test_checkpoints_in_another_folder_are_found(small_config, tmp_path):
    changes = {'default_hooks.checkpoint.out_dir': str(tmp_path / 'disk'), 'default_hooks.checkpoint.interval': 1}
    Runner.from_cfg(small_config(max_iters=2, **changes)).train()
    (tmp_path / 'disk' / 'run' / 'iter_2.pth').write_bytes(b'PK')
    runner = Runner.from_cfg(small_config(max_iters=2, resume=True, **changes))
    runner.train()
    assert runner._load_from == str(tmp_path / 'disk' / 'run' / 'iter_1.pth')


def test_a_run_that_is_done_says_so_and_reads_no_data(small_config, run, capfd, monkeypatch):
    read = []
    monkeypatch.setattr('mmseg.datasets.CityscapesDataset.__getitem__', lambda self, index: read.append(index))
    before = torch.load(run / 'iter_2.pth', weights_only=True)['state_dict']
    runner = Runner.from_cfg(small_config(max_iters=2, resume=True))
    model = runner.train()
    assert 'is at the end of this run (iter 2 of 2): nothing is left to train' in ''.join(capfd.readouterr())
    assert not read
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def _hub(checkpoint: dict) -> dict:
    return checkpoint['message_hub']['runtime_info']


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda c: c['meta'].update(iter=10**9), r'is at iter 1,000,000,000, beyond the end of this run: .*max_iters is 4'),
        (lambda c: c['meta'].pop('iter'), 'its meta gives None as iter'),
        (lambda c: c['meta'].update(epoch='one'), "its meta gives 'one' as epoch"),
        (lambda c: c['meta'].update(iter=-1), 'its meta gives -1 as iter'),
        (lambda c: c['meta'].update(seed='abc'), "its meta gives 'abc' as seed"),
        (lambda c: c.pop('meta'), 'its meta gives None as iter'),
        (lambda c: c.update(message_hub=None), 'message_hub, the history of the run, has no log_scalars'),
        (lambda c: c['message_hub'].pop('runtime_info'), 'message_hub, the history of the run, has no runtime_info'),
        (lambda c: _hub(c).update(keep_ckpt_ids=['../x']), r"gives \['../x'\] as keep_ckpt_ids"),
        (lambda c: _hub(c).update(best_score='high'), "gives 'high' as best_score"),
        (lambda c: _hub(c).update(best_ckpt=3), 'gives 3 as best_ckpt'),
        (lambda c: c.update(random_state=[dict(cpu=torch.zeros(3))]), 'random state in .* is damaged'),
        (lambda c: c.update(random_state='text'), 'random state in .* is damaged'),
        (lambda c: c.update(optimizer=[]), 'optimizer is a list, and an optimizer.s state dict belongs there'),
        (lambda c: c['optimizer'].update(state={0: None}), r'optimizer\.state\.0 is a NoneType'),
        (lambda c: c['optimizer']['state'][1].pop('exp_avg_sq'), 'optimizer state of parameter . has'),
        (lambda c: c['optimizer']['state'][0].update(exp_avg=torch.ones(2)), 'exp_avg of parameter 0 .* is of shape'),
        (lambda c: c.update(param_schedulers=c['param_schedulers'][:1]), 'learning rate schedules'),
        (lambda c: c.update(param_schedulers='text'), 'learning rate schedules'),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_named_with_what_is_wrong(small_config, run, edit, message):
    change(run / 'iter_2.pth', edit)
    with pytest.raises(ValueError, match=message) as caught:
        Runner.from_cfg(small_config(max_iters=4, resume=True)).train()
    assert str(run / 'iter_2.pth') in str(caught.value)


def test_resuming_runs_no_code_of_a_checkpoint(small_config, run, tmp_path):
    """mmengine reads the entry as a config, which is Python."""
    code = f'open({str(tmp_path / "ran")!r}, "w")'
    change(run / 'iter_2.pth', lambda checkpoint: checkpoint['meta'].update(config=code))
    Runner.from_cfg(small_config(max_iters=3, resume=True)).train()
    assert not (tmp_path / 'ran').exists()


TELLS_ADAMW = 'decoupled_weight_decay' in torch.optim.Adam([torch.zeros(1)]).defaults
SGD = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=5e-4, momentum=0.9))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optim_wrapper': SGD}, r'another optimizer than this SGD: it has .*betas.*, and no .*momentum'),
        pytest.param(
            {'optim_wrapper.optimizer.type': 'Adam'},
            'than this Adam: decoupled_weight_decay is True there and False here',
            marks=pytest.mark.skipif(not TELLS_ADAMW, reason='AdamW and Adam have the same state before PyTorch 2.7'),
        ),
        ({'optim_wrapper.optimizer.lr': 1e-3}, 'lr is 0.0005 there and 0.001 here'),
        ({'optim_wrapper.optimizer.weight_decay': 0.1}, 'weight_decay is 0.05 there and 0.1 here'),
        ({'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0.0)}, r'82 parameters in 1 group\(s\), .* one of 82 in 82'),
        ({'param_scheduler': None}, None),
    ],
)
def test_another_optimizer_is_refused_with_what_differs(small_config, run, changes, message):
    runner = Runner.from_cfg(small_config(max_iters=4, resume=True, **changes))
    if message is None:
        return runner.train()
    with pytest.raises(ValueError, match=message) as caught:
        runner.train()
    assert str(run / 'iter_2.pth') in str(caught.value)


def test_other_settings_for_some_parameters_are_refused(small_config):
    Runner.from_cfg(small_config(max_iters=2, **{'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0.0)})).train()
    other = {'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=1.0, bias_lr_mult=2.0)}
    with pytest.raises(ValueError, match=r'is 0.0\w* there and 0.0\w+ here \(group \d+\)'):
        Runner.from_cfg(small_config(max_iters=4, resume=True, **other)).train()


def test_a_schedule_that_goes_on_as_it_was_is_warned_of(small_config, run, capfd):
    config = small_config(max_iters=4, resume=True)
    config.param_scheduler[1].end = 1000
    Runner.from_cfg(config).train()
    said = ''.join(capfd.readouterr())
    assert 'schedule goes on as in the run to resume, with end=1200; the config has 1000' in said


@pytest.mark.slow
def test_two_processes_decide_alike(small_config, config_file, base):
    """One of them may look when the other has written already."""
    config = small_config(load_from=base, max_iters=2, **{'default_hooks.checkpoint.interval': 1})
    for said in ('There is no checkpoint to resume', 'is at the end of this run (iter 2 of 2)'):
        log = run_tool('tools/dist_train.sh', config_file(config), 2, '--resume', PORT=free_port()).stdout
        assert said in log
