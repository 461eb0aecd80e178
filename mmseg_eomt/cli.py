"""The command ``mmseg-eomt``: the scripts of ``tools`` wherever the package is installed."""

import os
import runpy
import sys
from pathlib import Path

from mmseg_eomt.configs import config_folder, config_path


def tools() -> dict[str, Path]:
    """Script of each command."""
    scripts = sorted((config_folder().parent / 'tools').glob('*'))
    return {path.stem: path for path in scripts if path.suffix in ('.py', '.sh') and not path.name.startswith('_')}


def main() -> None:
    """Run ``tools/COMMAND`` with the further arguments."""
    known = tools()
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ('', [])
    if name not in known:
        text = f'mmseg-eomt COMMAND [ARGUMENT …], where COMMAND is one of\n  {", ".join(known)}\n'
        text += 'and a config may be named mmseg_eomt::NAME, such as mmseg_eomt::eomt_lora_cityscapes.py.'
        if name in ('', '-h', '--help'):
            print(text)
            return
        sys.exit(f'mmseg-eomt: there is no command {name!r}.\n{text}')
    script = str(known[name])
    try:
        arguments = [config_path(argument) for argument in arguments]
    except FileNotFoundError as error:
        sys.exit(f'mmseg-eomt: {error}')
    if known[name].suffix == '.sh':
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', script, *arguments])
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(known[name].parent))
    runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
