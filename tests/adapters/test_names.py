"""An adapter's parameter is known by its name, and a plain model's own parameters are not taken for one."""

import sys
import warnings

import pytest
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from peft import inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from test_mixing import PAIRS
from torch import nn

from mmseg_eomt.adapters import names
from mmseg_eomt.adapters.names import adapter_names, is_adapter

FIELDS = {'IA3': dict(feedforward_modules=[]), 'FOURIERFT': dict(n_frequency=8), 'WAVEFT': dict(n_frequency=8)}


def adapted_by(method: str) -> nn.Module | None:
    """A small model with a method's adapters; None if PEFT does not put them into another library's layers."""
    config_class = next(cls for name, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name == method)
    model = nn.ModuleDict(dict(layer=nn.Linear(128, 128), norm=nn.LayerNorm(128)))
    target = 'norm' if method == 'LN_TUNING' else 'layer'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            return inject_adapter_in_model(config_class(target_modules=[target], **FIELDS.get(method, {})), model)
        except Exception:
            return None


def test_the_parameters_of_every_method_that_peft_puts_into_layers_are_known():
    models = {method.value: adapted_by(method.value) for method in PEFT_TYPE_TO_CONFIG_MAPPING}
    adapted = {method: adapter_names(model) for method, model in models.items() if model is not None}
    assert len(adapted) >= 15 and {'LORA', 'LOHA', 'OFT', 'IA3', 'HRA', 'LN_TUNING'} <= adapted.keys()
    unknown = {method: name for method, found in adapted.items() for name in found if not is_adapter(name)}
    assert not unknown


@pytest.mark.parametrize('pair', PAIRS)
def test_no_parameter_of_the_toolboxs_models_is_taken_for_an_adapter(pair):
    backbone, decode_head, others = PAIRS[pair]
    parts = dict(backbone=backbone, decode_head=decode_head, **others, test_cfg=ConfigDict(mode='whole'))
    model = MODELS.build(dict(type='EncoderDecoder', train_cfg=dict(), **parts))
    assert [name for name in model.state_dict() if is_adapter(name)] == []


@pytest.mark.parametrize(
    'name',
    [
        'decode_head.road_classifier.weight',
        'head.oft_used.bias',
        'x.lora_Attention.weight',
        'backbone.shadow_up.weight',
        'backbone.ln_1.weight',
        'prompt_embeddings',
        'layers.0.attn.w_msa.relative_position_bias_table',
        'blocks.0.attn.qkv.base_layer.weight',
    ],
)
def test_a_plain_models_own_names_are_no_adapters(name):
    assert not is_adapter(name)


def test_adapters_are_known_where_peft_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft.mapping', None)
    names._parameter_names.cache_clear()
    try:
        assert is_adapter('a.lora_A.default.weight') and is_adapter('a.ia3_l') and not is_adapter('a.weight')
    finally:
        names._parameter_names.cache_clear()
