"""The weights below the adapters, which have to be in the model before these are."""

from typing import Any, NamedTuple

from mmengine.hooks import EMAHook
from mmengine.runner import CheckpointLoader, Runner

from mmseg_eomt.adapters.base_weights import describe_base, restore_base, watch_loading
from mmseg_eomt.adapters.checkpoint import UNKNOWN_BASE, base_names, check_note, note_of, weights_of
from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.initial import exported_config
from mmseg_eomt.adapters.names import is_in_modules
from mmseg_eomt.adapters.starts import changes_base, keeps_start
from mmseg_eomt.engine.resume import check_resumable
from mmseg_eomt.engine.runner_state import checkpoint_path, is_resuming, is_training, segmentor_of


class Start(NamedTuple):
    """What a run has to know of its checkpoint before the Runner loads it."""

    note: dict[str, Any] | None
    brought: set[str]
    merged: bool


def read_start(runner: Runner) -> Start | None:
    """Look into the checkpoint that the Runner is to load or resume; None if there is none.

    Raises:
        ValueError: If it cannot be resumed.
    """
    path = checkpoint_path(runner)
    if not path:
        return None
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger=runner.logger)
    check_resumable(runner, checkpoint)
    return Start(note_of(checkpoint), base_names(weights_of(checkpoint)), bool((checkpoint.get('meta') or {}).get('merged')))


def config_of_run(runner: Runner, config: Any, start: Start | None) -> Any:
    """The config that LoRAHook is set to; where a run evaluates what such adapters were exported as, the config of that."""
    noted = None if start is None or start.note is None else start.note['peft']
    if noted is None or is_training(runner):
        return config
    return exported_config(config) if keeps_start(as_values(config)) and not keeps_start(noted) else config


def bring_base(runner: Runner, config: Any, start: Start | None, fully_trained: list[str], precision: str) -> dict[str, Any]:
    """Bring in the weights below the adapters, from which some methods compute the first values of these.

    Args:
        runner: Whose model is not adapted yet.
        config: PEFT's, of the adapters.
        start: As :func:`read_start` returned.
        fully_trained: Names of modules in no adapter.
        precision: LoRAHook's ``base_precision``.

    Returns:
        The description of the base that checkpoints note (:func:`~mmseg_eomt.adapters.base_weights.describe_base`).
    """
    model, path, given = segmentor_of(runner), checkpoint_path(runner), None if start is None else start.note
    if is_resuming(runner) and start is not None and given is None and config.target_modules:
        raise ValueError('The checkpoint to resume from has no adapters: to start from it, leave out --resume.')
    base = noted_base(runner, config, given, precision) if given is not None else UNKNOWN_BASE
    names = [name for name, _ in model.named_parameters()]
    frozen = [name for name in names if not is_in_modules(name, fully_trained)]
    if start is not None and given is not None and not given['complete']:
        initialised = set(names) - set(frozen) if is_training(runner) else set()
        restore_base(model, base, start.brought | initialised, str(path))
        return base
    if not is_training(runner) or (is_resuming(runner) and start is not None):
        return base  # the checkpoint brings all of it
    with watch_loading(model) as loaded:
        model.init_weights()
        if start is not None and given is None:
            load_now(runner)
    if given is not None:
        return base
    absent = [name for name in frozen if name not in loaded]
    if absent:
        runner.logger.warning(
            f'LoRAHook freezes random weights: {len(absent)} of {len(frozen)} frozen parameters, such as {absent[0]}, came '
            f'from no file. Name one in init_cfg or load_from, or set trainable_modules.'
        )
    return describe_base(model, loaded, path)


def noted_base(runner: Runner, config: Any, given: dict[str, Any], precision: str) -> dict[str, Any]:
    """The base that a checkpoint's note describes, once its adapters are known to be those that LoRAHook is set to."""
    check_note(given, config, str(checkpoint_path(runner)))
    noted = given.get('base_precision', 'fp32')
    if is_resuming(runner) and noted != precision:
        raise ValueError(f'The run to resume had base_precision={noted!r}, here it is {precision!r}: set the same.')
    if not given['complete'] or is_resuming(runner):
        return given['base']
    # a new run finds the base where it has found it itself
    changed = changes_base(given['peft'] or {})
    return UNKNOWN_BASE if changed else dict(given['base'], init_cfg={}, load_from=checkpoint_path(runner))


def load_now(runner: Runner) -> None:
    """Let the Runner load its checkpoint before the time; an EMA copy is made of the loaded model afterwards."""
    hooks = list(runner.hooks)
    runner.hooks[:] = [hook for hook in hooks if not isinstance(hook, EMAHook)]
    try:
        runner.load_or_resume()
    finally:
        runner.hooks[:] = hooks
