"""A frozen base in pieces: each process of a run keeps a part of every block's weights (PyTorch's FSDP2)."""

import inspect
from collections.abc import Collection
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.starts import changes_base
from mmseg_eomt.engine.feature_cache import FeatureCacheHook
from mmseg_eomt.engine.runner_state import segmentor_of
from mmseg_eomt.models.layers import Block


def waits_for_shards(runner: Runner) -> bool:
    """Whether a Runner that is being built is not to move its model to the GPU yet, where all of it might not fit."""
    hooks = runner.cfg.get('custom_hooks') or []
    asked = any(isinstance(hook, dict) and hook.get('shard_base') for hook in hooks)
    return asked and runner.world_size > 1 and not getattr(runner, 'hooks', None)


def check_shardable(runner: Runner, config: Any, save: str, base_precision: str) -> None:
    """Make sure that nothing in a run needs all of the base's weights in one process.

    Args:
        runner: Of several processes.
        config: PEFT's, of the adapters.
        save: LoRAHook's.
        base_precision: LoRAHook's.

    Raises:
        ImportError: If PyTorch's ``fully_shard`` cannot leave parameters out.
        ValueError: If something does, with what to change.
    """
    if 'ignored_params' not in inspect.signature(_fully_shard()).parameters:
        raise ImportError(f'shard_base needs PyTorch 2.7 or later, and this is {torch.__version__}.')
    if save != 'trainable':
        raise ValueError(f"shard_base keeps no whole base to save: it takes save='trainable', got {save!r}.")
    if base_precision in ('8bit', '4bit'):
        raise ValueError(f"shard_base takes base_precision='fp32' or 'bf16', got {base_precision!r}.")
    if config is not None and changes_base(as_values(config)):
        raise ValueError(
            'shard_base takes adapters that leave the base as it was; PiSSA, OLoRA, CorDA, LoftQ and the like change it and '
            'have to save it: drop init_lora_weights of LoRAHook.peft.'
        )
    for kind, reason in (
        (EMAHook, 'copies the whole model'),
        (FeatureCacheHook, 'runs the frozen blocks alone, and needs no memory for their training'),
    ):
        if any(isinstance(hook, kind) for hook in runner.hooks):
            raise ValueError(f'shard_base does not go with {kind.__name__}, which {reason}: drop one of the two.')
    if runner.cfg.get('compile'):
        raise ValueError('shard_base does not go with compile, which would see pieces of weights: drop one of the two.')


def shard_frozen(model: nn.Module, names: Collection[str]) -> int:
    """Leave each process a part of the frozen weights of a model's blocks, and everything else whole.

    A block gathers its weights before it runs, forward and backward, and lets go of them afterwards. What is trained stays
    in every process, for DDP.

    Args:
        model: An adapted model with blocks of a ViT, on the CPU or where it trains; the same in every process.
        names: Parameters that may be sharded: those that a checkpoint does not hold.

    Returns:
        Bytes of the weights that are sharded, over all processes.

    Raises:
        ValueError: If none of these is in a block.
    """
    from torch.distributed.device_mesh import init_device_mesh

    blocks = sharded_candidates(model)
    cut = [name for name in names if any(name.startswith(f'{block}.') for block in blocks)]
    parameters = dict(model.named_parameters())
    chosen = {id(parameters[name]) for name in cut if name in parameters}
    if not chosen:
        raise ValueError(
            f'shard_base shards frozen weights of the blocks of an EoMTViT or EoMTHead that came from a file, and of the '
            f'{len(blocks)} blocks of this model there are none: name the base in init_cfg or load_from.'
        )
    size = sum(p.numel() * p.element_size() for p in parameters.values() if id(p) in chosen)
    device = torch.device(get_device()).type
    settings: dict[str, Any] = dict(mesh=init_device_mesh(device, (torch.distributed.get_world_size(),)))
    for part in [*blocks.values(), model]:  # the model itself has no share, and lets the next block be gathered meanwhile
        whole = {p for p in part.parameters() if id(p) not in chosen and not is_shard(p)}
        _fully_shard()(part, ignored_params=whole, **settings)
    model.register_load_state_dict_pre_hook(_cut_given)
    shards = [name for name, parameter in model.named_parameters() if is_shard(parameter)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shards)
    return size


def sharded_candidates(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of ViTs in a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Block)}


def is_shard(value: Tensor) -> bool:
    """Whether a parameter is a process's part of a sharded one."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def hide_shards_once(model: nn.Module) -> None:
    """Leave shards out of the next ``state_dict``: a Runner broadcasts each entry once weights are initialised."""

    def hide(_module: nn.Module, state_dict: dict[str, Any], *_: Any) -> None:
        handle.remove()
        for name in [name for name, value in state_dict.items() if is_shard(value)]:
            del state_dict[name]

    handle = model.register_state_dict_post_hook(hide)


def local_bytes(value: Any) -> int:
    """Bytes of a parameter that this process keeps."""
    part = value.to_local() if is_shard(value) else value
    return part.numel() * part.element_size()


def _fully_shard() -> Any:
    from torch.distributed.fsdp import fully_shard

    return fully_shard


def _cut_given(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Cut the weights that a checkpoint has of the base; it comes behind the hook that gives them their adapted names."""
    from torch.distributed.tensor import distribute_tensor

    for name, own in model.named_parameters():
        given = state_dict.get(f'{prefix}{name}')
        if given is not None and is_shard(own) and not is_shard(given):
            given = given.to(own.device, own.dtype)
            own_part: Any = own
            # every process has read the file
            state_dict[f'{prefix}{name}'] = distribute_tensor(
                given, own_part.device_mesh, own_part.placements, src_data_rank=None
            )


class EvenPassesHook(Hook):
    """Let every process gather the blocks as often as the others when images are evaluated.

    An image of several windows goes through the blocks once for each, and images in other processes may have fewer. Before
    each pass the processes tell each other that there is one; who has none left gathers for the others until all are done.
    """

    def __init__(self, model: nn.Module) -> None:
        self._blocks: list[Any] = list(sharded_candidates(model).values())
        self._handle: Any = None

    def before_val(self, runner: Runner) -> None:
        """Begin to announce passes.

        Raises:
            ValueError: If the processes have different numbers of batches.
        """
        self._begin(runner.val_loop.dataloader)

    def before_test(self, runner: Runner) -> None:
        """See :meth:`before_val`."""
        self._begin(runner.test_loop.dataloader)

    def _begin(self, dataloader: Any) -> None:
        numbers = all_gather_object(len(dataloader))
        if len(set(numbers)) > 1:
            raise ValueError(
                f'With shard_base all processes evaluate together, and they have {numbers} batches: drop round_up=False of '
                f'the sampler.'
            )
        self._handle = self._blocks[0].register_forward_pre_hook(self._announce, prepend=True)

    def _announce(self, *_: Any) -> None:
        self._some_have(True)

    def _some_have(self, more: bool) -> bool:
        flag = torch.tensor(float(more), device=get_device())
        all_reduce(flag, 'max')
        return bool(flag)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Gather for the others until all are done."""
        while self._some_have(False):
            for block in self._blocks:
                block.unshard()
                block.reshard()

    after_test_iter = after_val_iter

    def after_val(self, runner: Runner) -> None:
        """Training announces nothing: every process goes through the blocks once."""
        self._handle.remove()

    after_test = after_val


def shard_base(runner: Runner, names: Collection[str]) -> None:
    """Shard the base of a Runner's adapted model, and say how much of it each process keeps."""
    model = segmentor_of(runner)
    size = shard_frozen(model, names)
    kept = sum(local_bytes(parameter) for parameter in model.parameters() if is_shard(parameter))
    runner.register_hook(EvenPassesHook(model), priority='VERY_HIGH')
    runner.logger.info(
        f'The frozen base of {size / 1e6:,.1f} MB is sharded over {runner.world_size} processes: this one keeps '
        f'{kept / 1e6:,.1f} MB and gathers a block at a time.'
    )
