"""A frozen base in fewer bits."""

import sys

import pytest
import torch
from mmengine.runner import Runner
from mmseg.apis import init_model

from mmseg_eomt.adapters import merge
from mmseg_eomt.adapters.names import adapter_names
from mmseg_eomt.adapters.precision import ReducedLinear, reduce_precision
from mmseg_eomt.models.eomt_vit import EoMTViT

IMAGE, META = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), [dict(img_shape=(64, 64), ori_shape=(64, 64))]


@torch.no_grad()
def scores(model: torch.nn.Module) -> torch.Tensor:
    return model.eval().encode_decode(IMAGE, META)


def test_layers_without_a_bias_of_keys_are_reduced_too():
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, rope_theta=100.0, qkv_bias='qv', layer_scale_init=1.0)
    vit = EoMTViT(arch, 64, num_joint_blocks=0).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = vit(image)[0]
        assert reduce_precision(vit, 'bf16') == 2 * 4
        assert 0 < (vit(image)[0] - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_base_in_bf16_trains_is_saved_and_loaded(small_config, base):
    changes = {'custom_hooks.0.base_precision': 'bf16', 'load_from': base}
    runner = Runner.from_cfg(small_config(lora=True, **changes))
    runner.train()
    model = runner.model
    layer = model.backbone.blocks[0].attn.qkv
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert all(model.get_parameter(name).dtype == torch.float32 for name in adapter_names(model))
    assert layer.lora_B['default'].weight.abs().max() > 0
    assert model.decode_head.class_head.weight.dtype == torch.float32
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and not m.weight.requires_grad]
    assert [m for m in linears if not isinstance(m, ReducedLinear)] == []

    tester = Runner.from_cfg(
        small_config(lora=True, name='test', **{**changes, 'load_from': f'{runner.work_dir}/iter_3.pth'})
    )
    tester.test()
    assert torch.equal(scores(tester.model), scores(model))
    in_fp32 = init_model(small_config(lora=True), f'{runner.work_dir}/iter_3.pth', device='cpu')  # on the same base, whole
    error = (scores(in_fp32) - scores(model)).abs().max() / scores(model).abs().max()
    assert 0 < error < 0.05
    merge(model)
    assert type(model.backbone.blocks[0].attn.qkv) is torch.nn.Linear
    assert model.backbone.blocks[0].attn.qkv.weight.dtype == torch.float32


def test_the_weights_take_half_the_memory(small_config, base):
    model = init_model(small_config(), base, device='cpu')
    before = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
    linear = sum(m.weight.numel() + m.bias.numel() for m in model.backbone.modules() if isinstance(m, torch.nn.Linear))
    assert reduce_precision(model.backbone, 'bf16') == 8
    assert sum(p.numel() * p.element_size() for p in model.backbone.parameters()) == before - 2 * linear


def test_an_unknown_precision_is_refused(small_config):
    with pytest.raises(ValueError, match=r"one of .*'bf16'.* got 'int4'"):
        Runner.from_cfg(small_config(lora=True, **{'custom_hooks.0.base_precision': 'int4'}))


def test_a_quantized_base_without_bitsandbytes_asks_for_it(small_config, base, monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)
    config = small_config(lora=True, load_from=base, **{'custom_hooks.0.base_precision': '8bit'})
    with pytest.raises(ImportError, match='run pip install bitsandbytes, or use bf16'):
        Runner.from_cfg(config).train()


@pytest.mark.parametrize('precision', ['8bit', '4bit'])
def test_a_quantized_base_trains_and_its_adapters_go_on_the_whole_one(small_config, precision):
    pytest.importorskip('bitsandbytes')
    arch = dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=2, layer_scale_init=1.0)  # 4 bits come in blocks of 64
    wide = {f'model.{part}.arch': arch for part in ('backbone', 'decode_head')}
    runner = Runner.from_cfg(small_config(max_iters=1, name='base', **wide))
    runner.train()
    changes = {**wide, 'custom_hooks.0.base_precision': precision, 'load_from': f'{runner.work_dir}/iter_1.pth'}
    runner = Runner.from_cfg(small_config(lora=True, max_iters=2, **changes))
    runner.train()
    model, checkpoint = runner.model, f'{runner.work_dir}/iter_2.pth'
    assert all(model.get_parameter(n).abs().max() > 0 for n in adapter_names(model) if '.lora_B.' in n)
    assert not model.backbone.blocks[0].attn.qkv.base_layer.weight.is_floating_point()
    assert not [
        name for name in torch.load(checkpoint, weights_only=True)['state_dict'] if 'backbone' in name and 'lora' not in name
    ]

    tester = Runner.from_cfg(small_config(lora=True, name='test', **{**changes, 'load_from': checkpoint}))
    tester.test()
    assert torch.equal(scores(tester.model), scores(model))
    whole = init_model(small_config(lora=True, **wide), checkpoint, device='cpu')
    error = (scores(whole) - scores(model)).abs().max() / scores(model).abs().max()
    assert error < 0.3
    with pytest.raises(ValueError, match='8 or 4 bits is not merged'):
        merge(model)
    merge(whole)
