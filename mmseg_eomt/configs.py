"""The plugin's own configs, wherever it is installed."""

from pathlib import Path

PREFIX = 'mmseg_eomt::'


def config_folder() -> Path:
    """The folder of the configs: inside an installed package, else of the checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / '.mim' / 'configs'
    return packaged if packaged.is_dir() else package.parent / 'configs'


def config_path(name: str) -> str:
    """Path of a config that is named ``mmseg_eomt::eomt_lora_cityscapes.py``; any other name is returned as it is.

    Raises:
        FileNotFoundError: If there is none of that name, with the names that there are.
    """
    if not name.startswith(PREFIX):
        return name
    path = config_folder() / name.removeprefix(PREFIX)
    if not path.is_file():
        names = sorted(found.relative_to(config_folder()).as_posix() for found in config_folder().rglob('eomt_*.py'))
        raise FileNotFoundError(f'{name}: mmseg_eomt has no such config. It has {", ".join(names)}.')
    return str(path)
