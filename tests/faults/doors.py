"""Every public way to hand over weights: each takes a path, and returns what came of it or raises."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

from faults.artefacts import Store, tool

Outputs = dict[str, Any]
Door = Callable[[Store, Path, Path], Outputs]  # whole files, what is handed over, a folder to work in


def image_of(store: Store) -> Path:
    """The fixed image that is predicted."""
    return sorted(store.scenes.glob('leftImg8bit/val/**/*.png'))[0]


def _logits(store: Store, model: torch.nn.Module) -> Outputs:
    image = cv2.imread(str(image_of(store)))
    return dict(logits=inference_model(model.eval(), image).seg_logits.data)


def _rotary(path: Path) -> bool:
    return 'v3' in path.name or path.name.startswith('shards')


def with_init_model(store: Store, path: Path, work: Path) -> Outputs:
    """``init_model`` of the toolbox."""
    return _logits(store, init_model(store.config(work, rotary=_rotary(path)), str(path), device='cpu'))


def with_load_model(store: Store, path: Path, work: Path) -> Outputs:
    """``load_model`` of the plugin."""
    from mmseg_eomt.inference import load_model

    file = work / 'config.py'
    store.config(work / 'run', rotary=_rotary(path)).dump(file)
    return _logits(store, load_model(str(file), str(path), device='cpu'))


def with_test(store: Store, path: Path, work: Path) -> Outputs:
    """``Runner.test``, as ``tools/test.py`` does."""
    lora = not path.name.startswith(('plain', 'averaged', 'public'))
    runner = Runner.from_cfg(store.config(work, lora, rotary=_rotary(path), load_from=str(path)))
    figures = runner.test()
    runner.model.cfg = runner.cfg
    return dict(_logits(store, runner.model), mIoU=float(figures['mIoU']))


def with_predict(store: Store, path: Path, work: Path) -> Outputs:
    """``tools/predict.py``."""
    file, out = work / 'config.py', work / 'out'
    store.config(work / 'run', rotary=_rotary(path)).dump(file)
    tool('predict.py', file, path, image_of(store), '--out', out)
    (label,) = (out / 'labels').glob('*.png')
    return dict(labels=torch.from_numpy(cv2.imread(str(label), cv2.IMREAD_UNCHANGED)))


class _Started(Exception):
    """Carries out of a Runner what its training would start with."""


class _Look(Hook):
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        found = dict(iter=runner.iter, weights=digest(runner.model.state_dict()))
        if runner.iter:
            found['optimizer'] = digest(runner.optim_wrapper.state_dict())
            found['schedules'] = digest([schedule.state_dict() for schedule in runner.param_schedulers])
        raise _Started(found)


def _start(config) -> Outputs:
    runner = Runner.from_cfg(config)
    runner.register_hook(_Look(), priority='LOWEST')
    try:
        runner.train()
    except _Started as found:
        return found.args[0]
    return dict(iter=runner.iter, ended=True)


def digest(state: Any) -> str:
    """Of all numbers in a nested state."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in sorted(value.items(), key=lambda pair: str(pair[0])):
                total.update(str(key).encode())
                add(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            total.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif not callable(value):
            total.update(repr(value).encode())

    add(state)
    return total.hexdigest()


def with_load_from(store: Store, path: Path, work: Path) -> Outputs:
    """A new run from ``load_from``; one with LoRA from files with adapters."""
    lora = not path.name.startswith(('plain', 'averaged', 'merged', 'public'))
    return _start(store.config(work, lora, rotary=_rotary(path), load_from=str(path)))


def with_resume(store: Store, path: Path, work: Path) -> Outputs:
    """``--resume`` in a work directory whose last checkpoint is the one that is handed over."""
    run = path.parent
    lora = run.name not in ('plain', 'averaged')
    changes = dict(load_from=str(store.place / 'plain.pth')) if lora else {}
    config = store.config(run, lora, resume=True, **changes)
    if 'averaged' in run.name:
        config.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    return _start(config)


def with_init_cfg(store: Store, path: Path, work: Path) -> Outputs:
    """A new run whose backbone and head take a ViT."""
    init_cfg = dict(type='Pretrained', checkpoint=str(path), _delete_=True)
    config = store.config(work, rotary=_rotary(path))
    config.merge_from_dict({f'model.{part}.init_cfg': init_cfg for part in ('backbone', 'decode_head')})
    return _start(config)


def with_base_under_adapters(store: Store, path: Path, work: Path) -> Outputs:
    """The base that slim adapters stand on."""
    changes = {'model.init_cfg': dict(type='Pretrained', checkpoint=str(path))}
    return _logits(store, init_model(store.config(work, **changes), str(store.place / 'slim.pth'), device='cpu'))


def with_load_adapter(store: Store, path: Path, work: Path) -> Outputs:
    """``load_adapter`` on a model that is loaded already."""
    from mmseg_eomt.adapters import load_adapter

    model = init_model(store.config(work), str(store.place / 'plain.pth'), device='cpu')
    before = digest(model.state_dict())
    try:
        load_adapter(model, path)
    except Exception:
        if digest(model.state_dict()) != before:
            raise AssertionError('load_adapter refused, and left something in the model') from None
        raise
    return _logits(store, model)


def _adapter_tool(store: Store, work: Path, *args: object) -> str:
    store.config(work / 'run', lora=True).dump(work / 'config.py')
    return tool('adapter.py', *args)


def with_info(store: Store, path: Path, work: Path) -> Outputs:
    """``tools/adapter.py info``: says what there is, whatever it is."""
    _adapter_tool(store, work, 'info', path)
    return {}


def with_diff(store: Store, path: Path, work: Path) -> Outputs:
    """``tools/adapter.py diff``."""
    _adapter_tool(store, work, 'diff', path, store.place / 'slim.pth')
    return {}


def with_merge(store: Store, path: Path, work: Path) -> Outputs:
    """``tools/adapter.py merge``."""
    _adapter_tool(store, work, 'merge', work / 'config.py', path, work / 'out.pth')
    return dict(weights=digest(torch.load(work / 'out.pth', weights_only=True)['state_dict']))


def with_export(store: Store, path: Path, work: Path) -> Outputs:
    """``tools/adapter.py export``."""
    from safetensors.torch import load_file

    _adapter_tool(store, work, 'export', work / 'config.py', path, work / 'out')
    return dict(
        weights=digest(load_file(work / 'out' / 'adapter_model.safetensors')),
        config=(work / 'out' / 'adapter_config.json').read_text(),
    )


def _converted(kind: str) -> Door:
    def convert(store: Store, path: Path, work: Path) -> Outputs:
        from safetensors.torch import load_file

        out, options = work / 'out', []
        if kind == 'hf':
            store.config(work / 'run', rotary=_rotary(path)).dump(work / 'config.py')
            options = ['--config', work / 'config.py', '--img-size', 64]
        tool('convert_checkpoint.py', path, out, '--to', kind, *options)
        weights = load_file(out / 'model.safetensors') if kind == 'hf' else torch.load(out, weights_only=True)
        return dict(weights=digest(weights.get('state_dict', weights)))

    return convert


MODELS = dict(init_model=with_init_model, load_model=with_load_model, test=with_test, predict=with_predict)
ADAPTERS = dict(info=with_info, diff=with_diff, merge=with_merge, export=with_export)
CONVERTERS = {f'convert to {kind}': _converted(kind) for kind in ('mmseg', 'eomt', 'hf')}
START = dict(load_from=with_load_from)
RESUME = dict(resume=with_resume)
INIT = dict(init_cfg=with_init_cfg)
DOORS: dict[str, dict[str, Door]] = {
    'plain.pth': {**MODELS, **START, **RESUME, **CONVERTERS, 'base under adapters': with_base_under_adapters},
    'averaged.pth': {**MODELS, **START, **RESUME},
    'slim.pth': {**MODELS, **START, **RESUME, **ADAPTERS},
    'slim_averaged.pth': {**MODELS, **START, **RESUME},
    'with_base.pth': {**MODELS, **START, **RESUME, **ADAPTERS},
    'merged.pth': {**MODELS, **START, **CONVERTERS, 'info': with_info},
    'adapter': {**MODELS, **START, **ADAPTERS, 'load_adapter': with_load_adapter},
    'public.bin': {**MODELS, **START, **INIT, **CONVERTERS},
    'public_v3.ckpt': {**MODELS, **START, **INIT, **CONVERTERS},
    'vit.pth': INIT,
    'vit_v3.safetensors': INIT,
    'shards': INIT,
}
