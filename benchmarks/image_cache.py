"""What reading an image costs one core: decoded, decoded and kept, and from the cache of decoded images.

    python benchmarks/image_cache.py [--root data/cityscapes] [--rounds 8]

Files of Cityscapes' and ADE20K's sizes are made from images in Cityscapes' layout, enlarged and with noise, so that they
take about as many bytes as theirs. Pixels must be equal. Each way reads the same files and they take turns; the cache is in
the system's folder for temporary files, and in the memory's page cache from the second reading on. The table goes to the
terminal, the figures to benchmarks/results/image_cache.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

from mmseg_eomt.data import LoadImageFromFile, png
from mmseg_eomt.tables import markdown_table

RESULTS = Path(__file__).parent / 'results' / 'image_cache.json'
NUM_FILES = 4
KINDS = {  # (width, height), name's end, noise in levels
    'Cityscapes, PNG 2048×1024': ((2048, 1024), '.png', 0.5),
    'ADE20K, JPEG 683×512': ((683, 512), '.jpg', 1.0),
}
WAYS = {'decoded': 'decoded', 'kept': 'decoded and kept', 'cached': 'from the cache'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=Path, default=Path('data/cityscapes'), help="images in Cityscapes' layout")
    parser.add_argument('--rounds', type=int, default=8, help='readings of each file in each way')
    args = parser.parse_args()
    cv2.setNumThreads(0)  # as in the workers of a run
    results: dict = dict(kornia_rs=png._decoder() is not None)  # which decodes plain PNG files
    rows = []
    for name, (size, kind, noise) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(args.root, Path(folder), size, kind, noise)
            found = measure(files, Path(folder), args.rounds)
        results[name] = found
        for way, label in WAYS.items():
            times = found[way]
            megabytes = found['megabytes' if way == 'decoded' else 'megabytes_kept']
            rows.append([name, label, f'{times["cpu"]:.1f}', f'{times["wall"]:.1f}', f'{megabytes:.1f}'])
    print('\n'.join(markdown_table([['files', 'image', 'CPU ms', 'ms', 'MB per image'], *rows], left=(0, 1))))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def make_files(root: Path, folder: Path, size: tuple[int, int], kind: str, noise: float) -> list[str]:
    """Images of a size, made of some of those below the root."""
    images = sorted((root / 'leftImg8bit' / 'train').glob('*/*_leftImg8bit.png'))
    if len(images) < NUM_FILES:
        raise SystemExit(f"{root} has {len(images)} images in Cityscapes' layout, and it takes {NUM_FILES}: give --root.")
    rng, files = np.random.default_rng(0), []
    for i, source in enumerate(images[:: len(images) // NUM_FILES][:NUM_FILES]):
        image = cv2.resize(cv2.imread(str(source)), size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        image = (image + rng.normal(0, noise, image.shape)).round().clip(0, 255).astype(np.uint8)
        files.append(str(folder / f'{i}{kind}'))
        cv2.imwrite(files[-1], image, [cv2.IMWRITE_PNG_COMPRESSION, 6] if kind == '.png' else [cv2.IMWRITE_JPEG_QUALITY, 85])
    return files


def measure(files: list[str], folder: Path, rounds: int) -> dict:
    """Median milliseconds of each way to read an image, and MB of a file and of an entry."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        cache = str(folder / f'cache{turn}')
        loaders = dict(decoded=LoadImageFromFile(), kept=LoadImageFromFile(cache_dir=cache))
        loaders['cached'] = loaders['kept']  # comes after it
        for file in files:
            images = []
            for way, loader in loaders.items():
                start = time.process_time(), time.perf_counter()
                image = loader(dict(img_path=file))['img']  # the check of an entry has read all of it
                times[way].append((time.process_time() - start[0], time.perf_counter() - start[1]))
                images.append(image)
            if not all(np.array_equal(images[0], image) for image in images[1:]):
                raise SystemExit(f'{file}: the cache has other pixels: nothing was measured.')
    medians = {
        way: dict(zip(('cpu', 'wall'), (round(1e3 * statistics.median(column), 2) for column in zip(*found))))
        for way, found in times.items()
    }
    kept = [entry.stat().st_size for entry in folder.glob('cache0/*.pixels')]
    sizes = [Path(file).stat().st_size for file in files]
    return dict(
        medians,
        megabytes=round(statistics.mean(sizes) / 1e6, 2),
        megabytes_kept=round(statistics.mean(kept) / 1e6, 2),
    )


if __name__ == '__main__':
    main()
