"""Read checkpoints in a process of its own, whose environment says where the Hub and the caches are.

python read_source.py NAME...    prints for each its keys' number and the sum of its numbers, or the error
"""

import sys

from mmengine.runner import CheckpointLoader

import mmseg_eomt  # noqa: F401

for name in sys.argv[1:]:
    try:
        loaded = CheckpointLoader.load_checkpoint(name, map_location='cpu', logger='silent')
        weights = loaded.get('state_dict', loaded)
        print(f'read {len(weights)} {sum(float(value.double().sum()) for value in weights.values()):.6f}')
    except (OSError, ValueError) as error:
        print(f'{type(error).__name__}: {error}')
