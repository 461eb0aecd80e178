"""The console command ``mmseg-eomt``."""

import os
import sys
from importlib import import_module
from pathlib import Path

from mmseg_eomt.configs import config_folder, config_path

COMMANDS = {  # module of mmseg_eomt.commands, and its function
    'adapter': 'adapter:main',
    'convert_checkpoint': 'convert_checkpoint:main',
    'convert_domain': 'convert_domain:main',
    'demo': 'demo:main',
    'demo_anomaly': 'demo_anomaly:main',
    'export': 'export:main',
    'init_dataset': 'init_dataset:main',
    'make_street_scenes': 'make_street_scenes:main',
    'plan': 'plan:main',
    'predict': 'predict:main',
    'preview_outliers': 'preview_outliers:main',
    'robustness': 'robustness:main',
    'show_queries': 'show_queries:main',
    'test': 'toolbox:evaluate',
    'test_anomaly': 'test_anomaly:main',
    'toolbox': 'toolbox:main',
    'train': 'toolbox:train',
}


def scripts() -> dict[str, Path]:
    """The shell scripts in ``tools``, which start several processes of a command."""
    return {path.stem: path for path in (config_folder().parent / 'tools').glob('*.sh')}


def main() -> None:
    """Run the command that the first argument names with the others."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ('', [])
    names = sorted({*COMMANDS, *scripts()})
    if name not in names:
        text = f'mmseg-eomt COMMAND [ARGUMENT …], where COMMAND is one of\n  {", ".join(names)}\n'
        text += 'and a config may be named mmseg_eomt::NAME, such as mmseg_eomt::eomt_lora_cityscapes.py.'
        if name in ('', '-h', '--help'):
            print(text)
            return
        sys.exit(f'mmseg-eomt: there is no command {name!r}.\n{text}')
    try:
        arguments = [config_path(argument) for argument in arguments]
    except FileNotFoundError as error:
        sys.exit(f'mmseg-eomt: {error}')
    if name not in COMMANDS:
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', str(scripts()[name]), *arguments])
    sys.argv = [f'mmseg-eomt {name}', *arguments]
    run_command(name)


def run_command(name: str) -> None:
    """Run a command with the arguments in ``sys.argv``."""
    module, function = COMMANDS[name].split(':')
    getattr(import_module(f'mmseg_eomt.commands.{module}'), function)()


if __name__ == '__main__':
    main()
