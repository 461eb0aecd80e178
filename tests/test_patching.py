"""The toolbox's functions are wrapped once by the plugin, whoever else wraps them."""

import ast
import functools
import re

import pytest
from conftest import ROOT
from mmengine.runner import Runner

from mmseg_eomt.patches import patch
from mmseg_eomt.patches.runner import patch_call_hook


class Owner:
    @staticmethod
    def static(value):
        return value

    def method(self, value):
        return value


def plus_one(function):
    return lambda *args: function(*args) + 1


def by_another(function):
    """As any other plugin or profiler wraps a function."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


def test_a_function_is_wrapped_once():
    for _ in range(2):
        patch(Owner, 'static', plus_one)
        patch(Owner, 'method', plus_one)
    assert Owner.static(1) == 2
    assert Owner().method(1) == 2


def test_a_function_that_others_have_wrapped_is_wrapped_all_the_same(monkeypatch):
    monkeypatch.setattr(Owner, 'method', by_another(lambda self, value: value))
    patch(Owner, 'method', plus_one)
    assert Owner().method(1) == 2


def test_a_wrapper_around_ours_is_not_wrapped_again(monkeypatch):
    monkeypatch.setattr(Owner, 'method', lambda self, value: value)
    patch(Owner, 'method', plus_one)
    monkeypatch.setattr(Owner, 'method', by_another(Owner.method))
    patch(Owner, 'method', plus_one)
    assert Owner().method(1) == 2


def test_a_run_is_checked_although_another_package_has_wrapped_the_runner(small_config, monkeypatch):
    original = Runner.call_hook
    while hasattr(original, '__wrapped__'):
        original = original.__wrapped__
    monkeypatch.setattr(Runner, 'call_hook', by_another(original))
    patch_call_hook()
    config = small_config()
    config.model.decode_head.num_classes = 5
    config.custom_hooks = []
    with pytest.raises(ValueError, match='19 classes, but num_classes of decode_head is 5'):
        Runner.from_cfg(config).train()


def test_patches_are_few_in_one_package_and_named_so():
    """Each by ``patch``, in a function ``patch_…`` whose docstring says when it can go."""
    replaced = 0
    for path in sorted((ROOT / 'mmseg_eomt').rglob('*.py')):
        calls = re.findall(r'^ +patch\(', path.read_text(), re.M)
        assert path.parent.name == 'patches' or not calls, path
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'patch' for node in ast.walk(function)
            ):
                assert function.name.startswith('patch_')
                assert re.search(r'\bGoes\s+when\b', ast.get_docstring(function)), function.name
        replaced += len(calls)
    assert 0 < replaced <= 14


def test_one_file_touches_what_the_runner_keeps_to_itself():
    found = {}
    for path in sorted((ROOT / 'mmseg_eomt').rglob('*.py')):
        names = re.findall(r"\brunner\.(_[a-z]\w*)|getattr\(runner, f?'(_)", path.read_text())
        if names:
            found[path.name] = {name or other for name, other in names}
    assert found == {'runner_state.py': {'_load_from', '_randomness_cfg', '_resume', '_test_loop'}}
