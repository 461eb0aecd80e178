"""One model evaluated on one dataset after another: what tools/test_anomaly.py and tools/robustness.py share."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine
import mmseg
import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

import mmseg_eomt
from mmseg_eomt.engine.runner_state import set_test
from mmseg_eomt.weights.sources import checkpoint_digest


def add_run_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """Options that say where and how a model is evaluated; ``folder`` is the one of the results below that of the config."""
    parser.add_argument('--out', type=Path, help=f'folder of the results (work_dirs/CONFIG/{folder})')
    parser.add_argument('--fresh', action='store_true', help='evaluate again what is finished')
    parser.add_argument('--device', help='such as cuda:1 or cpu (a GPU if there is one)')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='settings of the config to change'
    )


def check_run_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the process if the options contradict each other."""
    if args.device and args.launcher != 'none':
        parser.error('--device is for one process: with --launcher, each process has the GPU of its rank')


def results_folder(config: Config, args: argparse.Namespace, folder: str) -> Path:
    """Where the results go: ``--out``, or a folder in the config's work directory."""
    return args.out or Path(config.get('work_dir') or f'work_dirs/{Path(args.config).stem}') / folder


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    plugin = {'mmseg-eomt': mmseg_eomt.__version__}
    return plugin | {module.__name__: str(module.__version__) for module in (torch, mmengine, mmseg)}


class Evaluations:
    """A model that is loaded once, when it is needed, and evaluated on one dataset after another.

    Args:
        config: For the Runner, with ``model`` and ``test_dataloader``.
        args: Of the command: its ``checkpoint``, and the options of :func:`add_run_options`.
        out: Folder of the results.
    """

    def __init__(self, config: Config, args: argparse.Namespace, out: Path) -> None:
        config.merge_from_dict(
            dict(launcher=args.launcher, load_from=args.checkpoint, resume=False, work_dir=str(out / 'log'))
        )
        self.config, self.args, self.out = config, args, out
        self.digest = checkpoint_digest(args.checkpoint)
        self._runner: Runner | None = None

    def key_of(self, *content: Any) -> str:
        """What a result depends on, beside the content the model and its checkpoint, in a few letters."""
        sections = {name: self.config.get(name) for name in ('model', 'custom_hooks', 'test_cfg')}
        every = [sections, self.digest, versions(), content]
        return hashlib.sha256(json.dumps(every, sort_keys=True, default=str).encode()).hexdigest()

    def test(self, dataset: Mapping[str, Any], evaluator: dict[str, Any], title: str) -> tuple[dict[str, Any], Runner]:
        """Metrics on a dataset, whose images may be of several sizes; and the Runner that has the evaluator.

        Args:
            dataset: Its config.
            evaluator: Config of the metric.
            title: For the log.
        """
        if self._runner is None:
            self._runner = Runner.from_cfg(self.config)
            if self.args.device:
                self._runner.model.to(self.args.device)
        self._runner.logger.info(title)
        loader = dict(self.config.test_dataloader.to_dict(), dataset=dataset, batch_size=1, batch_sampler=None)
        loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
        set_test(self._runner, loader, evaluator)
        return self._runner.test(), self._runner
