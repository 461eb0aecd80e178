"""What the memory planner predicts for a step of the benchmark."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from benchmarks.candidates import CLASSES, JOINT, QUERIES, Arch
from mmseg_eomt.memory.predict import predict

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def predicted_mb(arch: Arch, side: int, batch: int, device: str, low: bool, kind: str) -> int | None:
    """Peak of a training step with weights and gradients, without optimizer; None of inference."""
    if 'step' not in kind:
        return None
    init_default_scope('mmseg')
    try:
        peak = predict(step_config(arch, side, batch, low, kind), device, CLASSES, evaluate=False).training
    except RuntimeError as error:  # the measured figures are still worth having
        print(f'The planner predicts nothing of "{kind}": {str(error).splitlines()[0]}')
        return None
    return round(sum(peak.values()) / 2**20)


def step_config(arch: Arch, side: int, batch: int, low: bool, kind: str) -> Config:
    """A config whose training step is that of the benchmark."""
    config = Config.fromfile(CONFIGS / f'eomt_{"lora_" if "LoRA" in kind else ""}cityscapes.py')
    for hook in config.custom_hooks:
        if hook['type'] == 'LoRAHook':
            hook['r'] = 16
    config.merge_from_dict(
        {
            'model.vit.arch': arch if isinstance(arch, str) else dict(_delete_=True, **arch),
            'model.vit.img_size': side,
            'model.vit.pretrained': None,
            'model.vit.num_joint_blocks': JOINT,
            'model.vit.with_cp': 'checkpointing' in kind,
            'model.decode_head.num_queries': QUERIES,
            'model.decode_head.num_classes': CLASSES,
            'train_pipeline': [dict(type='RandomCrop', crop_size=(side, side))],
            'train_dataloader.batch_size': batch,
            'optim_wrapper': dict(
                _delete_=True,
                type='AmpOptimWrapper' if low else 'OptimWrapper',
                optimizer=dict(type='SGD', lr=0.1),  # has no states
                **(dict(dtype='bfloat16') if low else {}),
            ),
        }
    )
    return config
