"""Evaluate one of a config's tasks: python tools/test.py CONFIG --task NAME."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from mmseg.utils import register_all_modules

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.tasks.loading import entry_of, tasks_of

DATA = ('test_dataloader', 'test_evaluator', 'data_root')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='with tasks, which names their checkpoints')
    parser.add_argument('--task', required=True, help='name of the one to evaluate')
    parser.add_argument('--work-dir', help='for the log (work_dirs/NAME OF THE CONFIG)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='settings to change')
    args = parser.parse_args(argv)
    with errors_in_a_sentence('test'):
        register_all_modules()
        Runner.from_cfg(task_config(args)).test()


def task_config(args: argparse.Namespace) -> Config:
    """The config of the evaluation: on the data of the task's own config if it has one, without the hooks of training."""
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    entry = entry_of(tasks_of(config), args.task)
    if isinstance(entry, Mapping) and entry.get('config'):
        own = Config.fromfile(entry['config'])
        for name in DATA:
            if name in own:
                config[name] = own[name]
    config.model.task = args.task
    config.work_dir = args.work_dir or config.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    config.update(custom_hooks=[], load_from=None, resume=False)
    return config
