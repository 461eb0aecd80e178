#!/usr/bin/env python
"""Run another script of the installed MMSegmentation: python tools/toolbox.py SCRIPT [its arguments …].

SCRIPT is its path below the toolbox's tools, as analysis_tools/get_flops.
"""

import sys

from _toolbox import run_script, scripts_folder

if __name__ == '__main__':
    folder = scripts_folder()
    names = sorted(str(path.relative_to(folder).with_suffix('')) for path in folder.rglob('*.py'))
    name = sys.argv.pop(1).removesuffix('.py') if len(sys.argv) > 1 else None
    if name not in names:
        given = f'The installed toolbox has no script {name}.\n\n' if name else ''
        sys.exit(f'{given}{__doc__}\nScripts:\n  ' + '\n  '.join(names))
    run_script(f'{name}.py')
