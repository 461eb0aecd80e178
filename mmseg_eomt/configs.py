"""The plugin's own configs, wherever it is installed."""

from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from mmseg_eomt.patches import patch

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
    patch(Config, '_get_cfg_path', _own_base)
    patch(Config, 'fromfile', _own_file)


def _own_base(get_cfg_path: Callable) -> Callable:
    def find(cfg_path: str, filename: str) -> tuple[str, str | None]:
        return (config_path(cfg_path), None) if cfg_path.startswith(PREFIX) else get_cfg_path(cfg_path, filename)

    return find


def _own_file(fromfile: Callable) -> Callable:
    def read(filename: str | Path, *args, **kwargs) -> Config:
        return fromfile(config_path(str(filename)), *args, **kwargs)

    return read
