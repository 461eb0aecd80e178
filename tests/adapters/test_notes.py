"""A checkpoint whose note of its adapters is not one is refused in a sentence with its name."""

import pytest
import torch
from mmengine.runner import Runner
from mmseg.apis import init_model

UNKNOWN = dict(init_cfg={}, load_from=None, fingerprints={})
GIVEN = dict(type='Pretrained', checkpoint='base.pth')
WRONG = {
    'empty': ({}, 'lacks peft'),
    'none': (None, r"meta\['adapter'\] is None, expected a dict"),
    'text': ('lora', r"meta\['adapter'\] is 'lora', expected a dict"),
    'a list': ([1], r'is \[1\]'),
    'peft': (dict(peft='LORA'), "peft is 'LORA'"),
    'no method': (dict(peft=dict(r=4)), r'peft is \{'),
    'an unknown method': (dict(peft=dict(peft_type='NOPE')), 'NOPE'),
    'modules as text': (dict(trainable_modules='decode_head'), "trainable_modules is 'decode_head'"),
    'modules as numbers': (dict(trainable_modules=[1]), r'trainable_modules is \[1\]'),
    'complete': (dict(complete='yes'), "complete is 'yes', expected True or False"),
    'precision': (dict(base_precision='int4'), "base_precision is 'int4'"),
    'a base as text': (dict(base='base.pth'), "base is 'base.pth'"),
    'half a base': (dict(base=dict(init_cfg={})), r'base is \{'),
    'load_from': (dict(base=dict(UNKNOWN, load_from=5)), 'base.load_from is 5'),
    'init_cfg as text': (dict(base=dict(UNKNOWN, init_cfg='base.pth')), "base.init_cfg is 'base.pth'"),
    'init_cfg of another kind': (
        dict(base=dict(UNKNOWN, init_cfg={'backbone': dict(GIVEN, type='os.system')})),
        'base.init_cfg is .*os.system',
    ),
    'init_cfg with more': (
        dict(base=dict(UNKNOWN, init_cfg={'': dict(GIVEN, override=dict(type='Normal'))})),
        'base.init_cfg',
    ),
    'fingerprints': (dict(base=dict(UNKNOWN, fingerprints=['a'])), r"base.fingerprints is \['a'\]"),
    'a fingerprint': (dict(base=dict(UNKNOWN, fingerprints={'backbone.cls_token': 'abc'})), r"cls_token'\] is 'abc'"),
}


@pytest.fixture
def damaged(lora, tmp_path):
    """Write the checkpoint of adapters with a changed note; its path."""

    def write(change: object) -> str:
        checkpoint = torch.load(lora, weights_only=True)
        noted = checkpoint['meta']['adapter']
        checkpoint['meta']['adapter'] = {**noted, **change} if isinstance(change, dict) and change else change
        torch.save(checkpoint, tmp_path / 'damaged.pth')
        return str(tmp_path / 'damaged.pth')

    return write


@pytest.mark.parametrize(('door', 'wrong'), [*(('init_model', wrong) for wrong in WRONG), ('load_from', 'load_from')])
def test_a_note_that_is_none_is_refused(small_config, damaged, door, wrong):
    change, told = WRONG[wrong]
    path = damaged(change)
    with pytest.raises(ValueError, match=told) as error:
        if door == 'init_model':
            init_model(small_config(lora=True), path, device='cpu')
        else:
            Runner.from_cfg(small_config(lora=True, load_from=path)).test()
    assert path in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('meta', ['text', [1], 5])
def test_a_meta_that_is_none_is_refused(small_config, damaged, meta):
    path = damaged({})
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta'] = meta
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r'damaged.pth.*meta is a'):
        init_model(small_config(lora=True), path, device='cpu')


@pytest.mark.parametrize(
    'fields', [dict(r=10**9), dict(use_dora='no'), dict(lora_alpha='32'), dict(target_modules=['none'])]
)
def test_a_config_in_a_note_that_peft_cannot_take_is_refused(small_config, lora, damaged, fields):
    values = torch.load(lora, weights_only=True)['meta']['adapter']['peft']
    path = damaged(dict(peft={**values, **fields}))
    with pytest.raises(ValueError, match=r'damaged.pth') as error:
        init_model(small_config(lora=True), path, device='cpu')
    assert '\n' not in str(error.value)


def test_a_model_that_refuses_a_checkpoint_of_adapters_is_as_it_was(small_config, base, lora, tmp_path):
    from mmengine.runner import load_checkpoint

    model = init_model(small_config(), base, device='cpu')
    names = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    checkpoint = torch.load(lora, weights_only=True)
    checkpoint['state_dict'] = {name: value for name, value in checkpoint['state_dict'].items() if 'lora_B' not in name}
    torch.save(checkpoint, tmp_path / 'no_b.pth')
    with pytest.raises(RuntimeError, match=r'no_b.pth does not fit .*8 missing'):
        load_checkpoint(model, str(tmp_path / 'no_b.pth'))
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == names
    assert not hasattr(model, 'peft_config')
