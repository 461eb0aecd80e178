"""Finds and runs the installed toolbox's own scripts."""

import runpy
import sys
from pathlib import Path


def run_script(name: str) -> None:
    """Run ``tools/<name>`` of the installed mmsegmentation as ``__main__``, with this command's arguments."""
    folder = scripts_folder()
    script = folder / name
    if not script.is_file():
        sys.exit(f'mmsegmentation has no {script}: run pip install "mmsegmentation==1.2.2"')
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name='__main__')


def scripts_folder() -> Path:
    """The ``tools`` of the installed mmsegmentation; the plugin is imported first, and the scripts find it so."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin
    try:
        import mmseg_eomt  # noqa: F401
    except ImportError as error:
        sys.exit(str(error))
    import mmseg

    # .mim in a wheel; tools beside the package in a checkout that was installed with pip -e
    package = Path(mmseg.__file__).parent
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        if folder.is_dir():
            return folder
    sys.exit(f'mmsegmentation at {package} comes without its tools: run pip install "mmsegmentation==1.2.2"')
