"""Runs the core of the suite with each of the packages that MMSegmentation comes in, and with the oldest of all.

    python tests/environments.py [NAME …]      make environments NAMES="NAME …"

NAME is lite (mmcv-lite), full (mmcv, compiled here: some 12 minutes on two cores), forks (onedl-*) or oldest (every package
at its lower bound in pyproject.toml); without one, all four. Each has its environment in .venv-NAME. The last lines are a
table of versions and results, as the README has it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / 'Makefile').read_text()
TORCH = os.environ.get('TORCH') or re.search(r'^TORCH \?= (\S+)', MAKEFILE, re.M).group(1)


def others(asked: list[str]) -> list[str]:
    """What is asked for besides the toolbox, which the forks replace."""
    extras = ('', 'test', 'export', 'openvino', 'anomaly', 'png')
    return [name for name, extra in map(parts, asked) if not name.startswith('mm') and extra in extras]


def oldest(asked: list[str]) -> list[str]:
    """Every package at its lower bound, mmcv-lite for mmcv."""
    names = [name for name, _ in map(parts, asked) if not name.startswith('mmseg-eomt')]
    return [re.sub(r'[<>].*>=([\w.]+).*|>=(.+)', r'==\1\2', name) for name in names]


def parts(requirement: str) -> tuple[str, str]:
    """Package with its versions, and the extra that asks for it."""
    package, _, marker = requirement.partition(';')
    return package.strip(), ''.join(re.findall(r'extra == "(\w+)"', marker))


# each line is one call of pip; --no-build-isolation lets mmcv see the PyTorch and the older setuptools that it builds with
ENVIRONMENTS = {
    'lite': [[TORCH], ['--editable', '.[lite,test]']],
    'full': [
        [TORCH],
        ['setuptools<80.9', 'wheel', 'ninja', 'psutil'],
        ['mmcv==2.1.0', '--no-build-isolation'],
        ['--editable', '.[test]'],
    ],
    'forks': [
        [TORCH],
        ['onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation'],
        ['--no-deps', '--editable', '.'],
        others,
    ],
    'oldest': [['--no-deps', '--editable', '.'], oldest],
}
PRINT_ASKED = 'from importlib.metadata import requires; print(*requires("mmseg-eomt"), sep="\\n")'
PARALLEL = ['-n', 'logical', '--maxprocesses', '8', '--dist', 'loadfile']  # as the Makefile
CORE = [
    *('tests/models', 'tests/adapters', 'tests/weights/test_formats.py', 'tests/weights/test_adapt.py', 'tests/engine'),
    *('tests/test_compat.py', 'tests/test_configs.py', 'tests/test_dataset_configs.py', 'tests/test_data_check.py'),
    *('tests/test_inference.py', 'tests/test_predict.py', 'tests/test_mixing.py'),
]
SHOWN = ('torch', 'mmcv', 'mmcv-lite', 'mmengine', 'mmsegmentation', 'peft', 'transformers')


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(ENVIRONMENTS))
    names = parser.parse_args().names or list(ENVIRONMENTS)
    unknown = set(names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f'there is {", ".join(ENVIRONMENTS)}, not {", ".join(unknown)}')
    rows = [row(name) for name in names]
    print('\n| environment | versions | installing | core of the suite |\n|---|---|---|---|')
    print('\n'.join(line for line, _ in rows))
    sys.exit(any(failed for _, failed in rows))


def row(name: str) -> tuple[str, bool]:
    """Make an environment, run the tests in it, and describe both in a line of a table; whether something failed."""
    python, seconds = install(name)
    versions = ', '.join(f'{package} {version}' for package, version in installed(python).items())
    print(f'\n=== {name}: {versions}', flush=True)
    done = subprocess.run(
        [python, '-m', 'pytest', *PARALLEL, '-m', 'slow or not slow', *CORE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout[-4000:], flush=True)
    result = re.findall(r'^.*(?:passed|failed|error).* in .*$', done.stdout, re.M)
    return f'| `{name}` | {versions} | {seconds:.0f} s | {result[-1] if result else "did not run"} |', bool(done.returncode)


def install(name: str) -> tuple[str, float]:
    """Make an environment; its Python, and the seconds that pip took."""
    folder = ROOT / f'.venv-{name}'
    shutil.rmtree(folder, ignore_errors=True)
    print(f'\n=== {name}: installing into {folder.name}', flush=True)
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    python = str(folder / 'bin' / 'python')
    pip = [python, '-m', 'pip', '--disable-pip-version-check', '--quiet', 'install']
    start = time.time()
    for packages in ENVIRONMENTS[name]:
        if callable(packages):
            packages = packages(printed(python, PRINT_ASKED))
        subprocess.run([*pip, *packages], cwd=ROOT, check=True)
    return python, time.time() - start


def installed(python: str) -> dict[str, str]:
    """Versions of the packages that matter."""
    code = 'from importlib.metadata import distributions as d; print(*(f"{x.name}=={x.version}" for x in d()), sep="\\n")'
    versions = dict(line.split('==') for line in printed(python, code))
    return {name: versions[name] for name in sorted(versions) if name.removeprefix('onedl-') in SHOWN}


def printed(python: str, code: str) -> list[str]:
    """The lines that some code prints in an environment."""
    return subprocess.run([python, '-c', code], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


if __name__ == '__main__':
    main()
