"""Run a script of the installed MMSegmentation: mmseg-eomt toolbox SCRIPT [its arguments …].

SCRIPT is its path below the toolbox's tools, as analysis_tools/get_flops. Without SCRIPT, all of them are listed.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import mmseg

from mmseg_eomt.commands import test_task

REPAIR = 'run pip install "mmsegmentation==1.2.2"'


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script, or list them all."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    folder = scripts_folder()
    names = sorted(str(path.relative_to(folder).with_suffix('')) for path in folder.rglob('*.py'))
    scripts = '\nScripts:\n  ' + '\n  '.join(names)
    if not arguments or arguments[0] in ('-h', '--help'):
        print(__doc__ + scripts)
        return
    name = arguments.pop(0).removesuffix('.py')
    if name not in names:
        sys.exit(f'The installed toolbox has no script {name}.\n{scripts}')
    run_script(f'{name}.py', arguments)


def train(argv: Sequence[str] | None = None) -> None:
    """Train, with the toolbox's ``tools/train.py``."""
    arguments = sys.argv[1:] if argv is None else argv
    if any(argument.startswith('resume=') for argument in arguments):
        sys.exit('train: resume=… has no effect here, since --resume alone sets it: use --resume, or omit it.')
    run_script('train.py', arguments)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Evaluate, with the toolbox's ``tools/test.py``; with ``--task``, one of the tasks that a config names."""
    arguments = sys.argv[1:] if argv is None else argv
    if any(argument.split('=')[0] == '--task' for argument in arguments):
        test_task.main(arguments)
    else:
        run_script('test.py', arguments)


def run_script(name: str, arguments: Sequence[str]) -> None:
    """Run ``tools/<name>`` of the installed mmsegmentation as ``__main__``; the plugin is imported by now."""
    script = scripts_folder() / name
    if not script.is_file():
        sys.exit(f'mmsegmentation has no {script}: {REPAIR}')
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name='__main__')


def scripts_folder() -> Path:
    """The ``tools`` of the installed mmsegmentation."""
    package = Path(mmseg.__file__).parent
    # .mim in a wheel; tools beside the package in a checkout that was installed with pip -e
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        if folder.is_dir():
            return folder
    sys.exit(f'mmsegmentation at {package} comes without its tools: {REPAIR}')
