"""Puts configs and tools into the wheel; what the package is and asks for stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Puts configs and tools into ``mmseg_eomt/.mim`` of the wheel, where MIM and ``mmseg_eomt::…`` look for them."""

    def run(self) -> None:
        """Build the package, then copy them."""
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        target = Path(self.build_lib) / 'mmseg_eomt' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithConfigs})
