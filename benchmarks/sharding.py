"""Memory and time of LoRA's training step with the frozen base whole, and sharded over two CPU processes (gloo).

``python benchmarks/sharding.py`` starts two processes for each of the two, compares their losses, and writes
``benchmarks/results/sharding.json``. On a CPU a block's weights come from the other process's memory: what it takes on GPUs
was not measured.
"""

import argparse
import ctypes
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmseg_eomt  # noqa: F401  registers models
from mmseg_eomt.adapters.config import lora_config
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.engine.lora_hook import ATTENTION_LAYERS
from mmseg_eomt.engine.sharding import local_bytes, shard_frozen
from mmseg_eomt.tables import markdown_table

RESULTS = Path(__file__).parent / 'results' / 'sharding.json'
PROCESSES = 2
TRAINED = ('query_embed', 'class_head', 'mask_head', 'upscale')


def main() -> None:
    """Measure both, and print and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='base')
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ('whole', 'sharded'):
        with mp.Manager() as manager:
            given = manager.dict()
            store = f'{RESULTS.parent}/.{name}.store'
            Path(store).unlink(missing_ok=True)
            given_to = (name == 'sharded', args.arch, args.size, args.rounds, store, given)
            mp.start_processes(measure, given_to, PROCESSES, start_method='fork')  # imports are done
            found[name] = [given[rank] for rank in range(PROCESSES)]
            Path(store).unlink(missing_ok=True)
    for one, other in zip(*found.values()):
        difference = max(abs(a - b) / abs(a) for a, b in zip(one['losses'], other['losses']))
        if difference > 1e-5:
            raise SystemExit(f'The losses differ by {difference:.1e}: what was measured is not the same training.')
    rows = [('frozen base', 'its blocks, MB', 'resident after a step, MB', 'peak of a step, MB', 'step, s')]
    rows += [
        (name, *(f'{max(one[key] for one in ranks):,.{digits}f}' for key, digits in KEYS.items()))
        for name, ranks in found.items()
    ]
    print('\n'.join(markdown_table(rows)))
    RESULTS.write_text(json.dumps(dict(settings=vars(args), processes=PROCESSES, measured=found), indent=1) + '\n')


KEYS = dict(base_mb=0, resident_mb=0, peak_mb=0, seconds=2)


def measure(rank: int, sharded: bool, arch: str, size: int, rounds: int, store: str, given: Any) -> None:
    """Train a step a few times in one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    model = build(arch, size)
    blocks = [n for n, p in model.named_parameters() if '.blocks.' in n and not p.requires_grad]
    if sharded:
        shard_frozen(model, blocks)
    parameters = dict(model.named_parameters())
    base = sum(local_bytes(parameters[name]) for name in blocks)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    image, sample = torch.randn(1, 3, size, size), SegDataSample()
    sample.gt_sem_seg = PixelData(
        data=torch.randint(19, (1, size // 32, size // 32)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    )
    losses, seconds = [], []
    before = 0
    for i in range(rounds + 1):
        if i == rounds:
            release()
            before = memory_kb('VmRSS')
            Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
        start = time.perf_counter()
        loss = sum(v for k, v in wrapped(image, [sample], mode='loss').items() if 'loss' in k)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
    given[rank] = dict(
        base_mb=base / 2**20,
        resident_mb=before / 1024,
        peak_mb=memory_kb('VmHWM') / 1024,
        seconds=statistics.median(seconds[1:]),
        losses=losses,
    )
    dist.barrier()
    dist.destroy_process_group()


def build(arch: str, size: int) -> nn.Module:
    """An EoMT with LoRA, from random weights: memory and time do not depend on them."""
    vit = dict(arch=arch, num_joint_blocks=3, img_size=(size, size), pretrained=None)
    head = dict(type='EoMTHead', num_classes=19, num_queries=100)
    model = MODELS.build(dict(type='EoMTSegmentor', vit=vit, backbone=dict(type='EoMTViT'), decode_head=head))
    config = lora_config(16, 32, 0.0, ATTENTION_LAYERS, ['patch_embed.proj'])
    inject(model, config, [f'decode_head.{part}' for part in TRAINED])
    return model.train()


def memory_kb(field: str) -> int:
    """``VmRSS``, which is resident, or ``VmHWM``, the highest of it, of this process (Linux)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))


def release() -> None:
    """Give memory that is free back to the system."""
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)


if __name__ == '__main__':
    main()
