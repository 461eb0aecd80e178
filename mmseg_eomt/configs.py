"""The plugin's own configs, wherever it is installed."""

import functools
from pathlib import Path

from mmengine.config import Config

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


def find_own_configs() -> None:
    """Let mmengine find ``mmseg_eomt::…``, as a config and in ``_base_``; a second call changes nothing.

    mmengine knows the packages of its own family alone, and only configs in subfolders.
    """
    base_path, fromfile = Config._get_cfg_path, Config.fromfile
    if hasattr(base_path, '__wrapped__'):
        return

    def get_cfg_path(cfg_path, filename):
        if cfg_path.startswith(PREFIX):
            return config_path(cfg_path), None
        return base_path(cfg_path, filename)

    @functools.wraps(fromfile)
    def from_file(filename, *args, **kwargs):
        return fromfile(config_path(str(filename)), *args, **kwargs)

    get_cfg_path.__wrapped__ = base_path
    Config._get_cfg_path = staticmethod(get_cfg_path)
    Config.fromfile = staticmethod(from_file)
