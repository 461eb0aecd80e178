"""What stands in a checkpoint in place of weights is refused with its name and file, whichever way it is loaded."""

import re
from pathlib import Path

import mmengine.runner
import numpy as np
import pytest
import torch
from layouts import Sizes, dinov2_release
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import load_checkpoint
from mmseg.apis import init_model
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS

from mmseg_eomt.models import EoMTViT
from mmseg_eomt.models.segmentor import share_vit
from mmseg_eomt.weights.checkpoint_io import check_optimizer, check_values, read_file

NAME = 'backbone.blocks.0.norm1.weight'
WRONG = {
    'text': (lambda value: 'hello', 'is a str, and a tensor'),
    'a list': (lambda value: value.tolist(), 'is a list, and a tensor'),
    'None': (lambda value: None, 'is a NoneType, and a tensor'),
    'sparse': (lambda value: value.to_sparse(), 'is a sparse_coo tensor, and a dense one'),
    'quantized': (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), 'is a quantized tensor'),
    'meta': (lambda value: value.to('meta'), 'is a meta tensor'),
    'NaN': (lambda value: value.index_fill(0, torch.tensor(3), float('nan')), 'holds 1 NaN and 0 Inf among 32 numbers'),
    'Inf': (lambda value: value.index_fill(0, torch.tensor(3), -float('inf')), 'holds 0 NaN and 1 Inf among 32 numbers'),
    'integers': (lambda value: value.long(), 'is of int64, and float32'),
    'booleans': (lambda value: value.bool(), 'is of bool, and float32'),
    'eight bits': (lambda value: value.to(torch.float8_e4m3fn), 'is of float8_e4m3fn, whose scales'),
    'complex': (lambda value: value.to(torch.complex64), 'is of complex64, and float32'),
}


def vit() -> dict[str, torch.Tensor]:
    """A public file that fits the small config."""
    return dinov2_release(Sizes(0, dims=32, heads=2, layers=4, hidden=128, gated=False, patch=16, grid=4))


def changed(path: str, folder: Path, change, name: str = NAME) -> str:
    """A copy of a checkpoint with one of its weights changed."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['state_dict'][name] = change(checkpoint['state_dict'][name])
    torch.save(checkpoint, folder / Path(path).name)
    return str(folder / Path(path).name)


@pytest.mark.parametrize('wrong', WRONG)
@pytest.mark.parametrize('door', ['init_model', 'a ViT in init_cfg'])
def test_what_is_no_weight_is_refused_with_its_name_and_file(small_config, base, tmp_path, door, wrong):
    change, told = WRONG[wrong]
    if door == 'init_model':
        path, name = changed(base, tmp_path, change), NAME
        load = lambda: init_model(small_config(), path, device='cpu')  # noqa: E731
    else:
        path, name = str(tmp_path / 'vit.pth'), 'blocks.0.norm1.weight'
        weights = vit()
        torch.save({**weights, name: change(weights[name])}, path)
        config = share_vit(small_config().model)['backbone']
        config['init_cfg'] = dict(type='Pretrained', checkpoint=path)
        config.pop('type')
        load = EoMTViT(**config).init_weights
    with pytest.raises(ValueError, match=f'^{re.escape(path)}: {re.escape(name)} {told}'):
        load()


@pytest.mark.parametrize('wrong', ['NaN', 'integers'])
@pytest.mark.parametrize(('door', 'lora'), [('load_from', False), ('load_from', True), ('resume', False)])
def test_a_run_neither_starts_from_it_nor_resumes_it(small_config, base, tmp_path, door, lora, wrong):
    change, told = WRONG[wrong]
    path = changed(base, tmp_path, change)
    config = small_config(lora=lora, max_iters=2, load_from=path, resume=door == 'resume')
    with pytest.raises(ValueError, match=f'^{re.escape(path)}: {re.escape(NAME)} {told}'):
        Runner.from_cfg(config).train()


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda moment: moment.index_fill(0, torch.tensor(0), float('nan')), r'holds \d+ NaN'),
        (lambda moment: moment.long(), 'is of int64'),
        (lambda moment: None, 'is a NoneType'),
    ],
)
def test_a_run_does_not_resume_an_optimizer_that_holds_it(small_config, base, tmp_path, change, told):
    checkpoint = torch.load(base, weights_only=True)
    index = max(checkpoint['optimizer']['state'])
    values = checkpoint['optimizer']['state'][index]
    values['exp_avg'] = change(values['exp_avg'])
    path = tmp_path / 'run' / 'iter_1.pth'
    path.parent.mkdir()
    torch.save(checkpoint, path)

    init_model(small_config(), str(path), device='cpu')  # its weights are right
    with pytest.raises(ValueError, match=rf'^{re.escape(str(path))}: optimizer.state.{index}.exp_avg {told}'):
        Runner.from_cfg(small_config(max_iters=2, load_from=str(path), resume=True)).train()


@pytest.mark.parametrize('make', [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor, torch.optim.LBFGS])
def test_the_state_of_any_optimizer_passes(make):
    layer = torch.nn.Linear(2, 2)
    optimizer = make(layer.parameters(), lr=0.1)

    def loss():
        optimizer.zero_grad()
        value = layer(torch.ones(1, 2)).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    check_optimizer(optimizer.state_dict(), 'a.pth')
    check_optimizer(dict(head=optimizer.state_dict(), backbone=optimizer.state_dict()), 'a.pth')
    with pytest.raises(ValueError, match=r'a.pth: optimizer.head.state is a str'):
        check_optimizer(dict(head=dict(state='x', param_groups=[])), 'a.pth')


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_read(small_config, base, tmp_path, kind):
    path = changed(base, tmp_path, lambda value: value.to(kind))
    model = init_model(small_config(), path, device='cpu')
    expected = torch.load(base, weights_only=True)['state_dict'][NAME].to(kind).float()
    assert torch.equal(model.get_parameter(NAME), expected)


def test_masks_of_attention_may_hold_minus_infinity_and_weights_not():
    mask = torch.full((5, 5), -float('inf')).triu(1)
    check_values(dict(attn_mask=mask, large=torch.full((4,), 3e38), half=torch.full((9, 9), 6e4).half()), 'a.pth')
    for wrong in (-mask, mask[:4], mask + 1, mask[0]):
        with pytest.raises(ValueError, match=r'a.pth: attn_mask holds 0 NaN and \d+ Inf'):
            check_values(dict(attn_mask=wrong), 'a.pth')


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (dict(state_dict='x'), 'state_dict is a str, and values by name'),
        (dict(state_dict=[torch.zeros(1)]), 'state_dict is a list'),
        (dict(state_dict={3: torch.zeros(1)}), '3 is a int, and names of weights are text'),
        ({3: torch.zeros(1)}, 'holds 3, and names of weights are text'),
        (dict(state_dict=dict(state_dict={})), 'state_dict is a dict, and a tensor belongs there'),
        (dict(state_dict={}, meta=None), 'meta is a NoneType'),
    ],
)
def test_what_has_not_the_form_of_a_checkpoint_is_refused(tmp_path, content, told):
    torch.save(content, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=rf'^{re.escape(str(tmp_path))}/weights.pth:? {told}'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'weights.pth'), logger='silent')


@pytest.mark.parametrize(
    'name',
    [
        'cls_token',
        'register_tokens',
        'pos_embed',
        'patch_embed.proj.weight',
        'blocks.0.mlp.fc2.weight',
        'blocks.0.ls1.gamma',
    ],
)
@pytest.mark.parametrize('change', [torch.Tensor.flatten, lambda value: value.sum(), lambda value: value[:0]])
def test_weights_in_other_dimensions_are_one_sentence(small_config, tmp_path, name, change):
    path, weights = tmp_path / 'vit.pth', vit()
    weights[name] = change(weights[name])
    torch.save(weights, path)
    config = share_vit(small_config().model)['backbone']
    config['init_cfg'] = dict(type='Pretrained', checkpoint=str(path))
    model = EoMTViT(**{key: value for key, value in config.items() if key != 'type'})
    if torch.equal(weights[name], vit()[name]):
        model.init_weights()
        return
    with pytest.raises(ValueError, match=rf'^{re.escape(str(path))}.* (is of shape|not one that fits|does not fit|has)'):
        model.init_weights()


def test_a_dataset_with_an_array_as_palette_writes_checkpoints_that_are_read(small_config):
    metainfo = dict(CityscapesDataset.METAINFO, palette=np.array(CityscapesDataset.METAINFO['palette'], dtype=np.uint8))

    @DATASETS.register_module(force=True)
    class ArrayPalette(CityscapesDataset):
        METAINFO = metainfo

    config = small_config(max_iters=1, **{'train_dataloader.dataset.type': 'ArrayPalette'})
    Runner.from_cfg(config).train()
    model = init_model(small_config(), f'{config.work_dir}/iter_1.pth', device='cpu')
    assert np.array_equal(model.dataset_meta['palette'], metainfo['palette'])
    assert model.dataset_meta['palette'].dtype == np.uint8


@pytest.mark.parametrize('kind', ['bool', 'int8', 'uint16', 'uint64', 'float16', 'float64', 'U3'])
def test_arrays_of_numbers_and_text_are_read(tmp_path, kind):
    array = np.array(['1', '0']).astype(kind)
    torch.save(dict(meta=dict(a=array, b=array[0])), tmp_path / 'a.pth')
    meta = read_file(tmp_path / 'a.pth')['meta']
    assert meta['a'].dtype == array.dtype
    assert (meta['a'] == array).all()
    assert meta['b'] == array[0]


def test_for_a_whole_file_the_unpickler_is_quoted_and_its_advice_is_not(tmp_path):
    torch.save(dict(meta=np.array([1, 'a'], dtype=object)), tmp_path / 'a.pth')
.*(ObjectD|object_)') as caught:
        read_file(tmp_path / 'a.pth')
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'b.pth')
    with pytest.raises(ValueError, match=r'b.pth holds what is not read from a checkpoint: .*TorchScript') as other:
        read_file(tmp_path / 'b.pth')
    for error in (caught, other):
        assert 'begins with' not in str(error.value)
        assert 'to `False`' not in str(error.value)


def test_both_names_of_mmengines_function_are_the_guarded_one(small_config, base, lora):
    """It is exported under a second name, by which weights of adapters would be dropped with a log line."""
    model = init_model(small_config(), base, device='cpu')
    assert mmengine.runner.load_state_dict is mmengine.runner.checkpoint.load_state_dict
    with pytest.raises(RuntimeError, match='has LoRA adapters'):
        mmengine.runner.load_state_dict(model, torch.load(lora, weights_only=True)['state_dict'])


def test_an_error_of_a_state_dict_that_was_read_names_its_file(small_config, base, tmp_path):
    model = init_model(small_config(), base, device='cpu')
    checkpoint = torch.load(base, weights_only=True)
    checkpoint['state_dict'] = {name: v for name, v in checkpoint['state_dict'].items() if 'mlp' not in name}
    torch.save(checkpoint, tmp_path / 'less.pth')
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / 'less.pth'))):
        load_checkpoint(model, str(tmp_path / 'less.pth'))


def test_a_prefix_that_no_weight_has_is_one_sentence(base):
    module = BaseModule(init_cfg=dict(type='Pretrained', checkpoint=base, prefix='neck'))
    with pytest.raises(ValueError, match=rf"^{re.escape(base)}: No weights begin with 'neck'"):
        module.init_weights()
