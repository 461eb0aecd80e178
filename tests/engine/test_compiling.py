"""A compiled run: its network is compiled in the first iteration, and never again."""

import copy
import itertools

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch._dynamo import register_backend
from torch._dynamo.testing import CompileCounter

ITERATIONS = 12  # all masked, eight changes of the probabilities, and none masked
NAMES = itertools.count()


class Compilations(Hook):
    """Counts compilations, and the random draws of masks in what was compiled, at the end of each iteration."""

    def __init__(self) -> None:
        self.name, self.count, self.graphs, self.after = f'counting_{next(NAMES)}', CompileCounter(), [], []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        self.graphs.append([node for node in graph.graph.nodes if node.target is torch.rand])
        return self.count(graph, inputs)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.after.append(self.count.frame_count)


def run(small_config, spans: tuple, max_iters: int = ITERATIONS, **changes) -> tuple[Runner, Compilations]:
    """A compiled run that evaluates every five iterations, with spans of the masks' descents."""
    torch.compiler.reset()
    counted = Compilations()
    register_backend(lambda *graph: counted(*graph), name=counted.name)
    hooks = changes.pop('hooks', [])
    config = small_config(max_iters=max_iters, compile=dict(backend=counted.name), **changes)
    config.train_cfg.val_interval = 5
    config.custom_hooks = [hook for hook in config.custom_hooks if hook['type'] != 'MaskAnnealingHook'] + [
        dict(type='MaskAnnealingHook', start_iters=spans[0], end_iters=spans[1]),
        *hooks,
    ]
    runner = Runner.from_cfg(config)
    runner.register_hook(counted)
    runner.train()
    return runner, counted


def test_the_network_is_compiled_once_in_a_whole_annealed_run(small_config):
    runner, counted = run(small_config, ([2, 5], [6, 10]))
    assert runner.model.decode_head.mask_probs == (0.0, 0.0)
    assert counted.after == [2] * ITERATIONS  # backbone and head, both in the first iteration


@pytest.mark.parametrize('way', ['lora', 'ema', 'amp', 'with_cp'])
def test_it_is_so_in_the_other_modes_of_a_run(small_config, base, monkeypatch, way):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    changes = dict(
        lora=dict(lora=True, load_from=base),
        ema=dict(hooks=[dict(type='EMAHook', momentum=0.5)]),
        amp={'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'},
        with_cp={'model.backbone.with_cp': True, 'model.decode_head.with_cp': True},
    )[way]
    _, counted = run(small_config, ([1, 1], [3, 5]), 6, **changes)
    assert counted.after == [2] * 6


def test_a_compiled_run_without_masks_has_none_in_its_graphs(small_config):
    _, counted = run(small_config, ([-2, -2], [-1, -1]), 1)
    assert sum(map(len, counted.graphs)) == 0
    _, counted = run(small_config, ([-2, 0], [-1, 3]), 1)
    assert sum(map(len, counted.graphs)) == 1  # of the second joint block


def test_a_compiled_run_trains_and_evaluates_as_one_that_is_not(small_config):
    compiled, _ = run(small_config, ([1, 5], [4, 6]), 3, name='compiled')
    config = small_config(max_iters=3, name='plain')
    config.custom_hooks[0].update(start_iters=[1, 5], end_iters=[4, 6])
    plain = Runner.from_cfg(config)
    plain.train()
    for (name, weight), other in zip(plain.model.named_parameters(), compiled.model.parameters()):
        assert torch.allclose(weight, other, atol=1e-5), name


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(small_config):
    runner, _ = run(small_config, ([0, 0], [1, 1]), 1)
    model = runner.model.decode_head
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.class_head.weight)
    feats = runner.model.backbone(torch.randn(1, 3, 64, 64))
    for training in (False, True):
        _, classes = other.train(training)(feats)
        assert torch.equal(classes[-1], other.class_head.bias.expand_as(classes[-1]))
