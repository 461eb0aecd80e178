"""Every method of PEFT that adapts layers, by config alone: it trains, is saved, is loaded again and merged."""

from pathlib import Path

import peft
import pytest
import torch
from mmengine.runner import Runner
from mmseg.apis import init_model
from packaging.version import Version
from peft.tuners import lora

from mmseg_eomt.adapters import merge, peft_config
from mmseg_eomt.adapters.checkpoint import fill_from_model
from mmseg_eomt.adapters.names import adapter_names, is_adapter
from mmseg_eomt.adapters.peft_folder import read_folder
from mmseg_eomt.engine import LoRAHook

IMAGE, META = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), [dict(img_shape=(64, 64), ori_shape=(64, 64))]
NEW_PARTS = LoRAHook().trainable_modules
LORA_GA = hasattr(peft, 'LoraGAConfig')  # not in the earliest version that is supported
METHODS = {
    'DoRA': dict(use_dora=True),
    'rsLoRA': dict(use_rslora=True),
    'PiSSA': dict(init_lora_weights='pissa'),
    'PiSSA, randomised': dict(init_lora_weights='pissa_niter_2'),
    'OLoRA': dict(init_lora_weights='olora'),
    'minor directions': dict(init_lora_weights='minor'),
    'MiCA': dict(init_lora_weights='mica'),
    'orthogonal': dict(init_lora_weights='orthogonal'),
    'gaussian': dict(init_lora_weights='gaussian'),
    'EVA': dict(init_lora_weights='eva', eva_config=dict(whiten=True)),
    'CorDA': dict(init_lora_weights='corda', corda_config=dict(corda_method='kpm')),
    'LoRA-GA': dict(init_lora_weights='lora_ga', lora_ga_config=dict(scale='stable')),
    'rank pattern': dict(r=2, rank_pattern={'backbone.blocks.0.attn.qkv': 6}),
    'chosen blocks': dict(layers_to_transform=[1], layers_pattern='blocks'),
    'expression': dict(target_modules=r'decode_head\.blocks\.\d\.(attn\.qkv|mlp\.fc[12])'),
    'modules to save': dict(modules_to_save=['backbone.blocks.0.mlp']),
    'biases': dict(bias='lora_only'),
    'LoHa': dict(type='LoHaConfig', r=4, alpha=8),
    'LoKr': dict(type='LoKrConfig', r=4, alpha=8),
    'OFT': dict(type='OFTConfig', oft_block_size=8, r=0),
    'BOFT': dict(type='BOFTConfig', boft_block_size=4),
    'IA3': dict(type='IA3Config', feedforward_modules=[]),
    'HRA': dict(type='HRAConfig', r=4),
}


@torch.no_grad()
def scores(model: torch.nn.Module) -> torch.Tensor:
    return model.eval().encode_decode(IMAGE, META)


def _assert_all_is_asked_for(model: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Without one of each kind of what a method adds, or without a trained module, nothing is loaded."""
    model.requires_grad_(False)
    kinds = {
        name.replace('.weight', '').removesuffix('.default').split('.')[-1]: name for name in state_dict if is_adapter(name)
    }
    assert kinds
    head = next(name for name in state_dict if 'class_head.weight' in name)
    for name in (*kinds.values(), head):
        rest = {key: value for key, value in state_dict.items() if key != name}
        with pytest.raises(RuntimeError, match=r'1 missing'):
            fill_from_model(model, rest, modules=NEW_PARTS)


@pytest.mark.parametrize('method', METHODS)
def test_a_method_trains_is_saved_loaded_and_merged(small_config, base, method):
    if method == 'biases' and Version(peft.__version__) < Version('0.21'):
        pytest.skip("earlier versions of PEFT's format have no place for bare biases, and save_adapter says so")
    if (method == 'MiCA' and not hasattr(lora.layer.LoraLayer, 'mica_init')) or (method == 'LoRA-GA' and not LORA_GA):
        pytest.skip('earlier versions of PEFT do not know this start')
    if method == 'CorDA':
        pytest.importorskip('attr', reason="PEFT's CorDA imports attrs, which PEFT does not ask for")
    exported = method != 'PiSSA, randomised'  # PEFT would draw its change of the base anew
    hook = dict(type='LoRAHook', peft=METHODS[method], save_adapter=exported)
    config = small_config(lora=True, load_from=base, max_iters=2, custom_hooks=[hook])
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner = Runner.from_cfg(config)
    runner.train()
    names = [name for name in adapter_names(runner.model) if runner.model.get_parameter(name).requires_grad]
    start = torch.load(base, weights_only=True)['state_dict']
    assert names
    moved = {n for n, p in runner.model.named_parameters() if n in start and not torch.equal(p, start[n])}
    assert all(runner.model.get_parameter(name).requires_grad for name in moved)
    expected = scores(runner.model)

    checkpoint = Path(runner.work_dir) / 'iter_2.pth'
    kept = any('base_layer.weight' in name for name in torch.load(checkpoint, weights_only=True)['state_dict'])
    assert kept == (METHODS[method].get('init_lora_weights') in ('pissa', 'pissa_niter_2', 'olora'))  # these change the base
    loaded = init_model(small_config(lora=True), str(checkpoint), device='cpu')
    assert torch.allclose(scores(loaded), expected, atol=0)

    if exported:
        plain = init_model(small_config(), base, device='cpu')
        peft.PeftModel.from_pretrained(plain, checkpoint.parent / 'adapters' / 'iter_2')
        assert torch.allclose(scores(plain), expected, atol=1e-5)

    _assert_all_is_asked_for(loaded, torch.load(checkpoint, weights_only=True)['state_dict'])
    if exported:
        folder = checkpoint.parent / 'adapters' / 'iter_2'
        frozen = init_model(small_config(lora=True), str(folder), device='cpu')
        assert torch.allclose(scores(frozen), expected, atol=1e-5)
        _assert_all_is_asked_for(frozen, read_folder(folder)['state_dict'])

    merge(loaded)
    assert not adapter_names(loaded)
    assert loaded.state_dict().keys() == start.keys()
    assert torch.allclose(scores(loaded), expected, atol=1e-5)


def test_fresh_adapters_of_dora_and_pissa_start_from_the_base_that_was_loaded(small_config, base):
    """Their first values are computed from the base: put in before it, they would start from random weights."""
    plain = scores(init_model(small_config(), base, device='cpu'))
    for fields in (dict(use_dora=True), dict(init_lora_weights='pissa')):
        runner = Runner.from_cfg(
            small_config(lora=True, load_from=base, name=str(len(fields)), custom_hooks=[dict(type='LoRAHook', peft=fields)])
        )
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = None
        runner.call_hook('before_run')
        assert torch.allclose(scores(runner.model), plain, atol=1e-4)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(use_dorra=True), r"LoraConfig has no \['use_dorra'\]: PEFT .*'use_dora'"),
        (dict(type='LohaConfig'), "has no config class 'LohaConfig'"),
        (dict(type='AdaLoraConfig'), 'LoRAHook does not make'),
        (dict(type='PromptTuningConfig'), 'adapts no layers'),
        (dict(type='VeraConfig'), 'shared state|is not supported'),  # as PEFT 0.21 and as 0.18 say it
        (dict(type='LoHaConfig', r=0), 'positive integer'),
    ],
)
def test_what_peft_does_not_know_is_refused(small_config, base, fields, message):
    config = small_config(lora=True, load_from=base, custom_hooks=[dict(type='LoRAHook', peft=fields)])
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(config).train()


def test_numbers_of_lora_beside_another_method_are_refused():
    with pytest.raises(ValueError, match=r"\['r'\] are LoRA's numbers: put those of LoHaConfig into peft"):
        LoRAHook(r=8, peft=dict(type='LoHaConfig'))
    assert peft_config('LoHaConfig', ['qkv'], r=3).r == 3
