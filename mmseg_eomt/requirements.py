"""Whether the packages that pyproject.toml asks for are installed, in versions that fit."""

import functools
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

NAME = 'mmseg-eomt'
PYPROJECT = Path(__file__).parents[1] / 'pyproject.toml'
# the name to import, where it is not that of the package
_MODULES = {'mmcv-lite': 'mmcv', 'mmsegmentation': 'mmseg', 'pillow': 'PIL'}
# packages that may be there instead
_INSTEAD = {
    'mmcv-lite': ('mmcv', 'onedl-mmcv'),
    'mmengine': ('onedl-mmengine',),
    'mmsegmentation': ('onedl-mmsegmentation',),
}
# not needed for the import: LoRA looks for PEFT itself, and a later setuptools only warns
_LATER = {'peft', 'setuptools'}


def check_packages() -> None:
    """Check every package that the import of the plugin needs.

    Raises:
        ImportError: If one is missing, too old or too new, with the command that repairs it.
    """
    for name in asked():
        if name not in _LATER:
            check(name)


def check(name: str) -> None:
    """Check one package.

    Args:
        name: As in pyproject.toml; ``mmcv-lite`` stands for every mmcv.

    Raises:
        ImportError: If it is missing, too old or too new, with the command that repairs it.
    """
    requirement = asked().get(name, Requirement(name))
    versions = ','.join(sorted(map(str, requirement.specifier), reverse=True))  # lower bound first
    if importlib.util.find_spec(_MODULES.get(name, name)) is None:
        raise ImportError(f'mmseg_eomt needs {name}, which is not installed: run pip install "{name}{versions}"')
    for package in (name, *_INSTEAD.get(name, ())):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        # the forks count their versions anew
        if not package.startswith('onedl-') and not requirement.specifier.contains(version, prereleases=True):
            raise ImportError(
                f'mmseg_eomt needs {package}{versions}, but {version} is installed: run pip install "{package}{versions}"'
            )


@functools.cache
def asked() -> dict[str, Requirement]:
    """What pyproject.toml asks for by name, with mmcv-lite for mmcv.

    A checkout's file counts more than the metadata that an earlier ``pip install -e`` left. Empty where neither can be read.
    """
    requirements = map(Requirement, _lines())
    return {
        requirement.name: requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({'extra': 'lite'})
    }


def _lines() -> list[str]:
    reader = 'tomllib' if sys.version_info >= (3, 11) else 'tomli'  # which mmengine's yapf brings
    if PYPROJECT.is_file() and importlib.util.find_spec(reader):
        project = importlib.import_module(reader).loads(PYPROJECT.read_text(encoding='utf-8')).get('project', {})
        if project.get('name') == NAME:  # beside an installed package may be another's file
            return [*project['dependencies'], *project['optional-dependencies']['lite']]
    try:
        return metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
