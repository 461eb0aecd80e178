#!/usr/bin/env python
"""Run a script of the installed MMSegmentation: python tools/toolbox.py SCRIPT [its arguments …].

SCRIPT is its path below the toolbox's tools, as analysis_tools/get_flops. Without SCRIPT, all of them are listed.
"""

import sys

from _toolbox import run_script, scripts_folder

if __name__ == '__main__':
    folder = scripts_folder()
    names = sorted(str(path.relative_to(folder).with_suffix('')) for path in folder.rglob('*.py'))
    scripts = '\nScripts:\n  ' + '\n  '.join(names)
    if len(sys.argv) == 1 or sys.argv[1] in ('-h', '--help'):
        print(__doc__ + scripts)
        sys.exit()
    name = sys.argv.pop(1).removesuffix('.py')
    if name not in names:
        sys.exit(f'The installed toolbox has no script {name}.\n{scripts}')
    run_script(f'{name}.py')
