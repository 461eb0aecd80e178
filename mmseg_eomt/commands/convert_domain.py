"""Labels of another dataset as Cityscapes' 19 train ids, for configs/_base_/domains.

    python tools/convert_domain.py gta5 data/gta

NAME is cityscapes (from its *_labelIds.png), gta5, synthia (SYNTHIA-RAND-CITYSCAPES), mapillary (version 1.2) or
mapillary_v2 (2.0). Files *_labelTrainIds.png are written beside the labels. What is there already is kept, so that a run
which was stopped goes on. ACDC, BDD100K, Dark Zurich, Nighttime Driving and UrbanSyn are read as they are downloaded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.domains.convert import LAYOUTS, SUFFIX, convert


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', metavar='NAME', help=f'of the dataset: {", ".join(LAYOUTS)}')
    parser.add_argument('root', metavar='ROOT', type=Path, help='its folder, as it is downloaded')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of the new files (beside the labels)')
    args = parser.parse_args(argv)
    with errors_in_a_sentence('convert_domain'):
        done = convert(args.name, args.root, args.out)
        there = f', {done.skipped} were there' if done.skipped else ''
        print(f'{args.name}: {done.written} files *{SUFFIX} written to {args.out or args.root}{there}.')
        if done.ignored:
            print(
                'These have another size than their image, so that none of their pixels counts:', *done.ignored, sep='\n  '
            )
