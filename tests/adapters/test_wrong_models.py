"""What would end in a silently wrong model is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import reference
from folders import saved, small
from mmcv.transforms import BaseTransform
from mmengine.runner import Runner, load_checkpoint
from mmseg.apis import init_model
from mmseg.registry import TRANSFORMS

from mmseg_eomt.adapters import inject, load_adapter, lora_config, merge, save_adapter
from mmseg_eomt.adapters.base_weights import describe_base, differing, fingerprint, matches, named_weights

NEW_PARTS = ['decode_head.query_embed', 'decode_head.class_head', 'decode_head.mask_head', 'decode_head.upscale']


@TRANSFORMS.register_module()
class ClampLabels(BaseTransform):
    """Bring the scenes' labels into five classes."""

    def transform(self, results: dict) -> dict:
        labels = results['gt_seg_map']
        results['gt_seg_map'] = np.where(labels == 255, labels, labels % 5)
        return results


def folder_of(lora: str) -> str:
    return str(Path(lora).parent / 'adapters' / 'iter_2')


@pytest.mark.parametrize('change', [{'model.decode_head.num_classes': 5}, {'model.decode_head.num_queries': 7}])
@pytest.mark.parametrize('kind', ['slim', 'folder', 'plain'])
def test_a_model_of_other_sizes_is_refused_by_init_model(small_config, base, lora, kind, change):
    checkpoint = dict(slim=lora, folder=folder_of(lora), plain=base)[kind]
    told = r'checkpoint \((12|20), 32\), model \((7|6), 32\)|has (19|12) \w+, the model [57]:'
    with pytest.raises((RuntimeError, ValueError), match=told):
        init_model(small_config(lora=True, **change), checkpoint, device='cpu')


def test_another_split_of_joint_blocks_is_refused_by_init_model(small_config, base):
    other = {'model.backbone.num_joint_blocks': 3, 'model.decode_head.num_joint_blocks': 3}
    with pytest.raises(ValueError, match='has 2 joint blocks, the model 3'):
        init_model(small_config(**other), base, device='cpu')


def test_head_only_checkpoints_are_compared_too(small_config, base):
    changes = {'custom_hooks.0.target_modules': [], 'max_iters': 1}
    runner = Runner.from_cfg(small_config(lora=True, load_from=base, **changes))
    runner.train()
    slim = f'{runner.work_dir}/iter_1.pth'
    assert Runner.from_cfg(small_config(lora=True, load_from=slim, name='test', **changes)).test()['mIoU'] >= 0
    other = {**changes, 'model.decode_head.num_queries': 7}
    with pytest.raises(RuntimeError, match=r'query_embed.weight: checkpoint \(12, 32\), model \(7, 32\)'):
        Runner.from_cfg(small_config(lora=True, load_from=slim, name='other', **other)).test()


def test_training_from_adapters_starts_with_a_new_class_head_where_the_classes_differ(small_config, lora, capfd):
    config = small_config(lora=True, load_from=lora, max_iters=1, **{'model.decode_head.num_classes': 5})
    suffixes = dict(img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png')
    config.train_dataloader.dataset.update(type='BaseSegDataset', metainfo=dict(classes=tuple('abcde')), **suffixes)
    config.train_dataloader.dataset.pipeline.insert(2, dict(type='ClampLabels'))
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    Runner.from_cfg(config).train()
    log = ''.join(capfd.readouterr())
    assert 'randomly initialised: decode_head.class_head.weight: checkpoint (20, 32), model (6, 32)' in log


def test_merged_weights_are_not_put_under_adapters(small_config, base, lora, tmp_path):
    checkpoint = torch.load(base, weights_only=True)
    checkpoint['meta']['merged'] = True
    torch.save(checkpoint, tmp_path / 'merged.pth')
    model = init_model(small_config(lora=True), lora, device='cpu')
    with pytest.raises(RuntimeError, match='has its adapters merged in'):
        load_checkpoint(model, str(tmp_path / 'merged.pth'))


def test_adapters_in_init_cfg_are_refused(small_config, lora):
    config = small_config(**{'model.init_cfg': dict(type='Pretrained', checkpoint=lora)})
    with pytest.raises(RuntimeError, match='init_cfg names a checkpoint with LoRA adapters'):
        Runner.from_cfg(config).train()


def test_a_slim_checkpoint_that_has_lost_its_note_is_refused(small_config, lora, tmp_path):
    checkpoint = torch.load(lora, weights_only=True)
    del checkpoint['meta']['adapter']
    torch.save(checkpoint, tmp_path / 'stripped.pth')
    with pytest.raises(ValueError, match='does not record the base'):
        Runner.from_cfg(small_config(lora=True, load_from=str(tmp_path / 'stripped.pth'))).test()
    with pytest.raises(ValueError, match='does not say which'):
        init_model(small_config(lora=True), str(tmp_path / 'stripped.pth'), device='cpu')


def test_an_adapter_of_unknown_base_on_half_a_base_is_refused(small_config, tmp_path):
    """Such as one that plain PEFT has saved, in a config whose init_cfg brings the ViT and no head."""
    release = tmp_path / 'dinov2.pth'
    torch.save(reference('dinov2_release_to_16.pt')['release_state_dict'], release)
    arch = dict(_delete_=True, embed_dims=48, num_layers=2, num_heads=3)
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=str(release))
    changes = {
        f'model.{part}.{key}': value
        for part in ('backbone', 'decode_head')
        for key, value in dict(arch=arch, num_joint_blocks=1, init_cfg=init_cfg).items()
    }
    model = init_model(small_config(**changes), device='cpu')
    inject(model, lora_config(4, 8, 0.0, ['qkv']))
    save_adapter(model, tmp_path / 'adapter')
    changes.update({'custom_hooks.0.r': 4, 'custom_hooks.0.lora_alpha': 8})
    with pytest.raises(ValueError, match=r'weights, such as decode_head.query_embed.weight, are neither in it nor'):
        Runner.from_cfg(small_config(lora=True, load_from=str(tmp_path / 'adapter'), **changes)).test()


def test_frozen_weights_that_a_folder_would_lose_are_named(small_config, base, tmp_path):
    model = init_model(small_config(), base, device='cpu')
    known = describe_base(model, [name for name, _ in model.named_parameters() if 'upscale' not in name], base)
    inject(model, lora_config(4, 8, 0.0, ['qkv']), ['decode_head.class_head'])
    with pytest.raises(ValueError, match=r'\d+ frozen weights, such as decode_head.upscale.*came from no file'):
        save_adapter(model, tmp_path / 'adapter', base=known)


def test_running_statistics_are_part_of_the_base():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    known = describe_base(model, [name for name, _ in model.named_parameters()], None)
    assert not list(differing(named_weights(model), known))
    model[1].running_var.mul_(3)
    assert [line.split(':')[0] for line in differing(named_weights(model), known)] == ['1.running_var']


def test_a_base_is_the_same_up_to_rounding_and_no_further():
    """What was interpolated on another processor is off by some last bits; what was trained further by more."""
    torch.manual_seed(0)
    value = torch.randn(64, 48)
    noted = fingerprint(value)
    assert matches(value.clone(), noted)
    assert matches(value * (1 + 1e-7 * torch.randn_like(value)), noted)
    assert not matches(value * (1 + 1e-3 * torch.randn_like(value)), noted)
    assert not matches(value.roll(1, 0), noted)
    assert not matches(value * 1.001, noted)
    assert not matches(value.T, noted)


def test_adapters_that_change_the_base_go_beside_no_others(small_config, base, tmp_path):
    def plain():
        return init_model(small_config(), base, device='cpu')

    model = plain()
    inject(model, lora_config(4, 8, 0.0, ['qkv'], init_lora_weights='pissa'))
    save_adapter(model, tmp_path / 'pissa')
    model = plain()
    load_adapter(model, tmp_path / 'pissa', 'one')
    with pytest.raises(ValueError, match='go beside no others'):
        load_adapter(model, tmp_path / 'pissa', 'two')


@pytest.mark.parametrize('order', [('biases', 'none'), ('none', 'biases')])
def test_adapters_that_train_biases_go_beside_no_others_and_are_not_weighted(tmp_path, order):
    """The base has its biases once: the others would compute with them, and half of an adapter with all of them."""
    saved(tmp_path / 'biases', bias='lora_only')
    saved(tmp_path / 'none')
    model = small()
    load_adapter(model, tmp_path / order[0], 'one')
    with pytest.raises(ValueError, match=r'biases of the base that were trained \(bias\) go beside no others'):
        load_adapter(model, tmp_path / order[1], 'two')
    model = small()
    load_adapter(model, tmp_path / 'biases')
    with pytest.raises(ValueError, match=r'cannot be weighted'):
        merge(model, dict(default=0.5))


def test_an_adapter_goes_beside_the_one_of_a_checkpoint_or_leaves_no_trace(small_config, base, lora, tmp_path):
    model = init_model(small_config(lora=True), lora, device='cpu')
    image, meta = torch.randn(1, 3, 64, 64), [dict(img_shape=(64, 64), ori_shape=(64, 64))]
    with torch.no_grad():
        before = model.encode_decode(image, meta)
        load_adapter(model, folder_of(lora), 'again')
        assert torch.allclose(model.encode_decode(image, meta), before, atol=1e-6)


def test_a_layer_under_two_names_is_refused():
    model = torch.nn.Module()
    model.a = torch.nn.Linear(4, 4)
    model.b = model.a
    with pytest.raises(ValueError, match='a and b are one layer'):
        inject(model, lora_config(2, 4, 0.0, ['a', 'b']))
