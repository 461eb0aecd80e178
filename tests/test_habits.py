"""What contributors and CI rely on: one list of dependencies, and a workflow that runs the versions it promises."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import environments
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

import mmseg_eomt

tomllib = import_module('tomllib' if sys.version_info >= (3, 11) else 'tomli')

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
DEPENDENCIES = {name.name: name for name in map(Requirement, PROJECT['dependencies'])}
EXTRAS = {extra: [Requirement(name) for name in names] for extra, names in PROJECT['optional-dependencies'].items()}
WORKFLOW = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
MATRIX = WORKFLOW['jobs']['test']['strategy']['matrix']['include']
MAKEFILE = (ROOT / 'Makefile').read_text()
# import names that are not those of a package that pyproject.toml names
PROVIDED_BY = {'mmseg': 'mmsegmentation', 'PIL': 'pillow', 'mmcv': 'mmcv-lite', 'kornia_rs': 'kornia-rs'}
OPTIONAL = {'cv2', 'bitsandbytes'}  # comes with mmcv, in a build of the user's choice; is asked for where it is used


def lower_bound(requirement: Requirement) -> str:
    (bound,) = (part.version for part in requirement.specifier if part.operator == '>=')
    return bound


def makefile_pin(name: str) -> Requirement:
    return Requirement(re.search(rf'^{name} \?= (\S+)$', MAKEFILE, re.M).group(1))


def commands(job: str) -> str:
    return '\n'.join(step.get('run', '') for step in WORKFLOW['jobs'][job]['steps'])


def test_setup_py_repeats_nothing_of_pyproject():
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'setup'
    )
    assert [keyword.arg for keyword in call.keywords] == ['cmdclass']


def test_the_citation_is_of_this_version_and_these_authors():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == mmseg_eomt.__version__
    assert citation['authors'] == PROJECT['authors']
    assert citation['license'] == PROJECT['license']


def test_every_import_is_of_a_package_that_pyproject_asks_for():
    asked = {name.replace('-', '_') for name in DEPENDENCIES} | {name.name for names in EXTRAS.values() for name in names}
    for path in [*(ROOT / 'mmseg_eomt').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for module in imported(path) - set(sys.stdlib_module_names) - OPTIONAL - {'mmseg_eomt', '_command'}:
            assert PROVIDED_BY.get(module, module) in asked, f'{path} imports {module}'


def imported(path: Path) -> set[str]:
    """First parts of the names of the modules that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.split('.')[0] for name in names}


def test_the_makefiles_choices_are_allowed():
    torch, mmcv = makefile_pin('TORCH'), makefile_pin('MMCV')
    (allowed,) = EXTRAS['lite']
    assert mmcv.name == allowed.name
    for pin, range_ in ((torch, DEPENDENCIES['torch']), (mmcv, allowed)):
        assert range_.specifier.contains(str(pin.specifier).removeprefix('=='))


def test_ci_runs_the_oldest_and_newest_versions_that_are_promised():
    pythons = [Version(entry['python']) for entry in MATRIX]
    classified = [Version(name.rpartition(' ')[2]) for name in PROJECT['classifiers'] if 'Python :: 3.' in name]
    assert PROJECT['requires-python'] == f'>={min(pythons)}' == f'>={min(classified)}'
    assert max(pythons) == max(classified)
    torch = DEPENDENCIES['torch']
    for python in set(pythons):
        tested = sorted(Version(entry['torch']) for entry in MATRIX if Version(entry['python']) == python)
        assert tested[0] == Version(f'{lower_bound(torch)}.0')
        assert tested[-1] >= Version(str(makefile_pin('TORCH').specifier).removeprefix('=='))
        assert all(torch.specifier.contains(version) for version in tested)


def test_the_readme_says_which_versions_were_run():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    for entry in MATRIX:
        assert re.search(rf'^\|.*Python {re.escape(entry["python"])}.*PyTorch {re.escape(entry["torch"])}', text, re.M), (
            entry
        )


def test_the_oldest_environment_pins_each_lower_bound():
    asked = [*PROJECT['dependencies'], *(f'{name}; extra == "lite"' for name in PROJECT['optional-dependencies']['lite'])]
    pins = [Requirement(name) for name in environments.oldest([str(Requirement(name)) for name in asked])]
    expected = {**DEPENDENCIES, EXTRAS['lite'][0].name: EXTRAS['lite'][0]}
    bounded = {name for name, range_ in expected.items() if '>=' in str(range_.specifier)}
    assert {pin.name: str(pin.specifier) for pin in pins if pin.name in bounded} == {
        name: f'=={lower_bound(expected[name])}' for name in bounded
    }


def test_ci_lints_before_it_tests():
    lines = (ROOT / '.ci' / 'run').read_text().splitlines()
    assert lines.index('make lint') < lines.index('exec make test')
    assert 'make lint' in commands('lint') and 'make test' in commands('test') and 'make coverage' in commands('coverage')


@pytest.mark.parametrize(
    'path', [*(ROOT / '.github').rglob('*.yml'), ROOT / '.pre-commit-config.yaml', ROOT / 'CITATION.cff']
)
def test_yaml_parses(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_hooks_before_a_commit_download_nothing_and_are_what_lint_runs():
    (local,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert local['repo'] == 'local'
    assert {hook['language'] for hook in local['hooks']} <= {'system', 'pygrep'}
    run = {hook['entry'].split()[0].removeprefix('.venv/bin/') for hook in local['hooks'] if hook['language'] == 'system'}
    lint = MAKEFILE.split('\nlint:')[1].split('\n\n')[0]
    assert run == set(re.findall(r'\$\(VENV\)/bin/(\w+)', lint))
