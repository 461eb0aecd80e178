"""The adapted tree is what every part of a run sees, in every mode that the Runner has."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner

from mmseg_eomt.adapters.names import adapter_names


def train(small_config, base: str, **changes) -> Runner:
    """Three iterations, in which every adapter learns and every frozen weight stays."""
    changes = {'max_iters': 3, 'load_from': base, **changes}
    runner = Runner.from_cfg(small_config(lora=True, **changes))
    runner.train()
    model = runner.model
    weights = torch.load(base, weights_only=True)['state_dict']
    for name in adapter_names(model):
        if '.lora_B.' in name:
            assert model.get_parameter(name).abs().max() > 0, f'{name} has not learned'
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, weights[name.replace('.base_layer', '')]), f'{name} has moved'
    held = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params'] if p.requires_grad}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    return runner


def test_an_ema_copy_averages_the_adapters_and_is_what_is_evaluated(small_config, base):
    ema = dict(type='EMAHook', momentum=0.5)
    config = small_config(lora=True, load_from=base)
    runner = train(small_config, base, custom_hooks=[*config.custom_hooks, ema])
    checkpoint = torch.load(f'{runner.work_dir}/iter_3.pth', weights_only=True)
    name = next(name for name in adapter_names(runner.model) if '.lora_B.' in name)
    averaged, last = checkpoint['state_dict'][name], checkpoint['ema_state_dict'][f'module.{name}']
    assert torch.equal(last, runner.model.get_parameter(name))
    assert not torch.equal(averaged, last) and averaged.abs().max() > 0
    assert not any('base_layer.weight' in key for key in checkpoint['ema_state_dict'])

    resumed = Runner.from_cfg(
        small_config(lora=True, load_from=base, resume=True, max_iters=4, custom_hooks=[*config.custom_hooks, ema])
    )
    resumed.train()
    assert resumed.iter == 4
    copy = next(hook for hook in resumed.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert int(copy.steps) == 4

    tester = Runner.from_cfg(
        small_config(
            lora=True, load_from=f'{runner.work_dir}/iter_3.pth', name='test', custom_hooks=[*config.custom_hooks, ema]
        )
    )
    tester.test()
    assert torch.equal(tester.model.get_parameter(name), averaged)


def test_amp_trains_the_adapters(small_config, base, monkeypatch):
    """mmengine's wrapper asks for a GPU; bf16 autocast itself runs on a CPU."""
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    seen = []
    step = BaseModel._run_forward

    def run_forward(self, *args, **kwargs):
        seen.append(torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu'))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(BaseModel, '_run_forward', run_forward)
    changes = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
    runner = train(small_config, base, **changes)
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
    assert seen[0] == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())


@pytest.mark.slow
def test_a_compiled_step_trains_the_adapters(small_config, base):
    runner = train(small_config, base, compile=dict(backend='eager'))
    assert 'forward' in vars(runner.model.decode_head)


def test_recomputed_blocks_train_their_adapters(small_config, base):
    plain = train(small_config, base, name='plain')
    blocks = ['backbone.blocks.0', 'backbone.blocks.1']
    recomputed = train(small_config, base, name='recomputed', activation_checkpointing=blocks)
    assert 'forward' in vars(recomputed.model.backbone.blocks[0])
    for (name, one), other in zip(plain.model.named_parameters(), recomputed.model.parameters()):
        assert torch.allclose(one, other, atol=1e-5), name


def test_accumulated_gradients_step_once_for_several_batches(small_config, base):
    runner = train(small_config, base, max_iters=4, **{'optim_wrapper.accumulative_counts': 2})
    steps = {int(state['step']) for state in runner.optim_wrapper.optimizer.state_dict()['state'].values()}
    assert steps == {2}


def test_a_wrapper_that_cuts_up_weights_is_refused(small_config, base, monkeypatch):
    from mmengine.model import MMFullyShardedDataParallel

    class Sharded(MMFullyShardedDataParallel):
        def __init__(self, module):  # sharding itself needs processes, and is not reached
            torch.nn.Module.__init__(self)
            self._fsdp_wrapped_module = module

        @property
        def module(self):
            return self._fsdp_wrapped_module

    runner = Runner.from_cfg(small_config(lora=True, load_from=base))
    runner.model = Sharded(runner.model)
    with pytest.raises(ValueError, match='works with DistributedDataParallel, not with Sharded'):
        runner.call_hook('before_run')
