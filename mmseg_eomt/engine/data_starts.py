"""Starts of adapters that PEFT finds in data: EVA, CorDA and LoRA-GA, from images of the run's own training data."""

import copy
import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch import Tensor, nn
from tqdm import tqdm

from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.initial import FOUND, check_layer
from mmseg_eomt.adapters.inject import fitted_config, match_targets
from mmseg_eomt.adapters.starts import start_of
from mmseg_eomt.engine.checkpoints import random_state, set_random_state
from mmseg_eomt.engine.runner_state import is_training, segmentor_of

BATCHES = 16  # that a start looks at; fewer where the training data has fewer
ROUNDS = 8  # of these batches, in which EVA's directions have to settle
ROWS = 4096  # tokens per batch and layer that EVA decomposes


def look_at_data(runner: Runner, config: Any, fully_trained: Sequence[str]) -> None:
    """Find in the first training batches what adapters start from, and leave it at their layers.

    Other starts need nothing of it. Called once in the life of adapters, before they are put in. The batches come from a
    loader of their own, with the run's pipeline, sampler and seed, and random numbers and the model's buffers are put back:
    training sees what it would have seen. Each process looks at its own part; DDP then gives all of them the first one's
    adapters.

    Args:
        runner: Whose model is not adapted yet.
        config: PEFT's, of the adapters.
        fully_trained: Names of modules in no adapter.

    Raises:
        ImportError: If PEFT's CorDA needs a package that is not installed.
        ValueError: If a layer is not linear or gets no input, or PEFT cannot compute the start.
    """
    start = start_of(as_values(config))
    if start not in FOUND or not is_training(runner):
        return
    model = segmentor_of(runner)
    names = {name for found in match_targets(model, config, fully_trained).values() for name in found}
    for name in names:
        check_layer(name, model.get_submodule(name), start)
    fitted = fitted_config(model, config, fully_trained)
    runner.logger.info(f'init_lora_weights={start!r}: up to {BATCHES} training batches are looked at')
    with _as_before(model):
        batches = first_batches(runner)
        _check_calls(runner, batches[0], names, start)
        try:
            dict(eva=_eva, corda=_corda, lora_ga=_lora_ga)[start](runner, fitted, batches)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f'PEFT cannot compute init_lora_weights={start!r} for this model: {error}') from error


def first_batches(runner: Runner) -> list[dict[str, Any]]:
    """The first batches of training, read by this process from a loader that the training loop does not use.

    Raises:
        ValueError: If there are none.
    """
    settings = copy.deepcopy(runner.cfg.train_dataloader)
    settings.update(num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)
    loader = runner.build_dataloader(settings, seed=runner.seed)
    batches = list(itertools.islice(loader, BATCHES))
    if not batches:
        raise ValueError('The training data has no batch to look at: see train_dataloader.')
    return batches


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Put random numbers, buffers and mode back."""
    state, training = random_state(), model.training
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        set_random_state(state)
        model.train(training)
        for buffer, value in buffers:
            buffer.copy_(value)


def _run(runner: Runner, batch: dict[str, Any], mode: str = 'tensor') -> Any:
    """A forward pass in the run's own precision; the batch is left as it is."""
    model = segmentor_of(runner)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with runner.optim_wrapper.optim_context(model):
        return model(**data, mode=mode)


@torch.no_grad()
def _check_calls(runner: Runner, batch: dict[str, Any], names: set[str], start: str) -> None:
    model, called = segmentor_of(runner).eval(), set()
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name)) for name in sorted(names)
    ]
    try:
        _run(runner, batch)
    finally:
        for handle in handles:
            handle.remove()
    if names - called:
        raise ValueError(
            f'init_lora_weights={start!r} starts from the inputs of layers, and the model does not call '
            f'{len(names - called)} of them, such as {min(names - called)}: name them in exclude_modules.'
        )


def _rows(inputs: Any, _model_input: Any, _name: str) -> Tensor:
    """At most :data:`ROWS` tokens (N, C) of a layer's input (…, C), evenly spread."""
    tokens = (inputs[0] if isinstance(inputs, (tuple, list)) else inputs).flatten(0, -2)
    return tokens[:: -(-len(tokens) // ROWS)]


def _eva(runner: Runner, config: Any, batches: list[dict[str, Any]]) -> None:
    from peft import get_eva_state_dict

    model = segmentor_of(runner)
    passes = itertools.count()

    def forward(_model: nn.Module, batch: dict[str, Any]) -> None:
        if next(passes) > ROUNDS * len(batches):
            raise ValueError(
                f'EVA has not settled on directions after {ROUNDS} rounds of {len(batches)} batches: lower the rank r, or '
                f'eva_config.tau, or give larger batches.'
            )
        _run(runner, batch)

    found = get_eva_state_dict(
        model,
        batches,
        config,
        forward_fn=forward,
        prepare_model_inputs_fn=lambda *_: None,
        prepare_layer_inputs_fn=_rows,
        gather_distributed_inputs=False,
    )
    for name, components in found.items():
        setattr(model.get_submodule(name), FOUND['eva'], components)


def _corda(runner: Runner, config: Any, batches: list[dict[str, Any]]) -> None:
    try:
        from peft.tuners.lora.corda import preprocess_corda
    except ModuleNotFoundError as error:  # PEFT 0.21 does not ask for it
        raise ImportError(f"PEFT's CorDA needs a package that is not installed ({error}): run pip install attrs") from error

    model = segmentor_of(runner)

    def run_model() -> None:
        for batch in tqdm(batches, 'CorDA', disable=not is_main_process()):
            for index in range(len(batch['inputs'])):  # PEFT takes one sequence at a time
                _run(runner, {key: value[index : index + 1] for key, value in batch.items()})

    preprocess_corda(model, config, run_model)


def _lora_ga(runner: Runner, config: Any, batches: list[dict[str, Any]]) -> None:
    from peft.tuners.lora.loraga import preprocess_loraga

    model = segmentor_of(runner)

    def train_step() -> None:
        for batch in tqdm(batches, 'LoRA-GA', disable=not is_main_process()):
            model.parse_losses(_run(runner, batch, 'loss'))[0].backward()

    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Full backward hook is firing')
        preprocess_loraga(model, config, train_step)
