"""Package metadata."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Puts configs and tools into ``mmseg_eomt/.mim`` of the wheel, where MIM and ``mmseg_eomt::…`` look for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout has them
            return
        target = Path(self.build_lib) / 'mmseg_eomt' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='mmseg-eomt',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'mmseg_eomt' / '__init__.py').read_text()).group(1),
    description='EoMT (Encoder-only Mask Transformer) with LoRA for MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mmseg_eomt', 'mmseg_eomt.*']),
    cmdclass={'build_py': BuildWithConfigs},
    entry_points={'console_scripts': ['mmseg-eomt = mmseg_eomt.cli:main']},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.6',
        'mmengine==0.10.7',
        'mmsegmentation==1.2.2',
        'peft>=0.18',
        'scipy',
        'safetensors>=0.4',
        'huggingface_hub>=0.25',
        'ftfy',  # mmsegmentation imports these two and does not ask for them
        'regex',
        'packaging',
        'tqdm',
        'pillow>=10.1',
        'matplotlib',
        'setuptools<80.9',  # mmengine uses pkg_resources to find configs named mmseg::…; later versions warn or lack it
    ],
    extras_require={
        'lite': ['mmcv-lite==2.1.0'],  # not with full mmcv: both are the package mmcv
        'export': ['onnx', 'onnxscript', 'onnxruntime'],
        'test': [
            'pytest',
            'pytest-xdist',
            'ruff',
            'tensorboard',
            'seaborn',
            'prettytable',
            'onnx',
            'onnxscript',
            'onnxruntime',
        ],
    },
)
