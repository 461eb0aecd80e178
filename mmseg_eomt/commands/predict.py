"""Label maps and pictures of images, folders and videos; of anomaly scores too, or of several tasks.

    python tools/predict.py CONFIG CHECKPOINT INPUT… [--out DIR] [--anomaly rba [--threshold fpr=0.01]]
    python tools/predict.py CONFIG INPUT… --tasks all [--out DIR]

For each image, DIR/labels/NAME.png has the class ids in one channel, in the image's size, and DIR/overlays/NAME.png the
classes' colours over the image with a legend. A folder is read with its subfolders, whose names are kept. A video gives
DIR/overlays/NAME.mp4, and its frames' ids in DIR/labels/NAME/. With --anomaly, DIR/anomaly has maps of the score, and with
--threshold masks and components of what no class names. With --tasks, the config names a checkpoint for each task, and its
results are in DIR/TASK.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction
from tqdm import tqdm

from mmseg_eomt.anomaly.results.submissions import check_images
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.calibrate_anomaly import calibrate
from mmseg_eomt.commands.predict_anomaly import add_arguments, base_config, check_arguments, model_config, results
from mmseg_eomt.commands.predict_inputs import batches, find_inputs, is_video, read_images
from mmseg_eomt.commands.predict_tasks import TaskPredictor, check_has_no_tasks
from mmseg_eomt.commands.predictor import Predictor
from mmseg_eomt.inference import load_model
from mmseg_eomt.tasks import load_tasks
from mmseg_eomt.tasks.loading import task_names
from mmseg_eomt.whole import check_writable


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with errors_in_a_sentence('predict'):
        check_arguments(args)
        names = task_names(base_config(args), args.tasks) if args.tasks else []
        folders = names or results(args)
        inputs = find_inputs(args.inputs, *(args.out / name for name in names or ['']))
        if args.format:
            check_images([(name, is_video(path)) for path, name in inputs], args.format)
        for name in folders:
            check_writable(args.out / name)
        predictor = make_predictor(args, names)
        if args.calibrate or args.calibrate_images:
            calibrate(args, predictor.model, predictor.samples)
        if not inputs:
            return
        predictor.find_anomalies()
        try:
            failed = predict(inputs, predictor, args.batch_size)
        finally:  # a run that is stopped has the components of all masks that it has written
            if predictor.anomalies:
                predictor.anomalies.finish()
    if len(failed) < len(inputs):
        print(f'Wrote {" and ".join(str(args.out / name) for name in folders)}')
    if failed:
        sys.exit('\n  '.join([f'predict: {len(failed)} of {len(inputs)} inputs could not be predicted:', *failed]))


def make_predictor(args: argparse.Namespace, tasks: list[str]) -> Predictor:
    """The predictor of some tasks, or of the one model."""
    if tasks:
        return TaskPredictor(args, load_tasks(base_config(args), tasks, args.device))
    config = model_config(args)
    check_has_no_tasks(config)
    return Predictor(args, load_model(config, args.checkpoint, args.device))


def predict(inputs: list[tuple[Path, str]], predictor: Predictor, batch_size: int) -> list[str]:
    """Write the results of all inputs; a sentence for each that has none."""
    failed: list[str] = []
    images = [item for item in inputs if not is_video(item[0])]
    with tqdm(total=len(images), desc='Images', unit='images', disable=not images) as bar:
        for sources, batch in batches(read_images(images, failed), batch_size):
            for (path, name), image, found in zip(sources, batch, predictor.predictions(batch)):
                if isinstance(found, str):
                    failed.append(f'{path}: {found}')
                else:
                    predictor.save(name, image, found)
            bar.update(len(batch))
        bar.update(len(images) - bar.n)
    for path, name in inputs:
        if is_video(path):
            try:
                predictor.video(path, name)
            except ValueError as error:
                failed.append(f'{path}: {error}')
    return failed


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the model')
    parser.add_argument('checkpoint', help='its checkpoint; one of LoRA adapters too')
    parser.add_argument('inputs', type=Path, nargs='*', metavar='INPUT', help='images, folders of images, videos')
    parser.add_argument(
        '--tasks', nargs='+', metavar='TASK', help="of a config with tasks, which takes no checkpoint: names, or 'all'"
    )
    parser.add_argument('--out', type=Path, default=Path('predictions'), help='folder of the results (predictions)')
    parser.add_argument('--batch-size', type=int, default=4, help='images of one size at a time (4)')
    parser.add_argument('--opacity', type=float, default=0.5, help='of the colours, from 0 to 1 (0.5)')
    parser.add_argument('--device', help='such as cuda:1 or cpu (a GPU if there is one)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='settings of the config to change'
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.tasks:
        args.inputs, args.checkpoint = [Path(args.checkpoint), *args.inputs], None
        if args.anomaly is not None:
            parser.error('--tasks predicts classes alone: leave out --anomaly, or predict the task on its own')
    if not (args.inputs or args.calibrate or args.calibrate_images):
        parser.error('the following arguments are required: INPUT')
    if args.batch_size < 1 or not 0 <= args.opacity <= 1:
        parser.error(f'--batch-size is 1 or more and --opacity from 0 to 1, got {args.batch_size} and {args.opacity}')
    return args
