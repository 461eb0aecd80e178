"""Runs that would go wrong without a word are stopped, or warned of."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import reference, run_tool
from mmengine.runner import Runner


@pytest.mark.slow
@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
def test_resume_goes_on_with_this_run_where_load_from_is_set(small_config, config_file, base, lora):
    first = small_config(lora=lora, load_from=base, max_iters=2)
    run_tool('tools/train.py', config_file(first))
    log = run_tool('tools/train.py', config_file(small_config(lora=lora, load_from=base, max_iters=4)), '--resume').stdout
    assert 'was where it started' in log
    assert 'iter: 2' in log
    assert 'Iter(train) [4/4]' in log


def test_resuming_from_a_run_without_adapters_is_refused(small_config, base, tmp_path):
    (tmp_path / 'run').mkdir()
    shutil.copy(base, tmp_path / 'run')
    with pytest.raises(ValueError, match='leave out --resume'):
        Runner.from_cfg(small_config(lora=True, resume=True)).train()


@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
def test_a_vit_of_another_size_as_load_from_is_refused(small_config, tmp_path, lora):
    torch.save(reference('dinov2_release_to_16.pt')['release_state_dict'], tmp_path / 'dinov2.pth')
    with pytest.raises(ValueError, match=r'dinov2.pth has embed_dims=48, .*but arch asks for embed_dims=32'):
        Runner.from_cfg(small_config(lora=lora, load_from=str(tmp_path / 'dinov2.pth'))).train()


def test_a_model_of_another_width_is_refused(small_config, base):
    arch = dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=2)
    other = {f'model.{part}.arch': arch for part in ('backbone', 'decode_head')}
    with pytest.raises(ValueError, match=r'iter_1.pth has embed_dims=32, .*but arch asks for embed_dims=64'):
        Runner.from_cfg(small_config(load_from=base, **other)).test()


def test_another_number_of_classes_is_refused_in_evaluation(small_config, base):
    with pytest.raises(ValueError, match=r'has 19 classes, the model 5: to predict with it or to resume it'):
        Runner.from_cfg(small_config(load_from=base, **{'model.decode_head.num_classes': 5})).test()


def test_the_number_of_classes_must_be_the_datas(small_config):
    with pytest.raises(ValueError, match=r'19 classes, but num_classes of decode_head is 25'):
        Runner.from_cfg(small_config(**{'model.decode_head.num_classes': 25})).train()


def test_training_goes_on_with_a_new_class_head_where_the_classes_differ(small_config, base, tmp_path):
    for kind in ('img', 'ann'):
        (tmp_path / kind).mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / f'img/{i}.png'), np.full((64, 128, 3), 100, np.uint8))
        cv2.imwrite(str(tmp_path / f'ann/{i}.png'), np.full((64, 128), i, np.uint8))
    config = small_config(load_from=base, max_iters=1, name='two', **{'model.decode_head.num_classes': 2})
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    config.train_dataloader.dataset.update(
        type='BaseSegDataset',
        metainfo=dict(classes=('a', 'b')),
        data_root=str(tmp_path),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        img_suffix='.png',
        seg_map_suffix='.png',
    )
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.model.decode_head.class_head.weight.shape == (3, 32)


def test_a_plain_checkpoint_under_a_lora_config_is_warned_of(small_config, base, capfd):
    Runner.from_cfg(small_config(lora=True, load_from=base)).test()
    assert 'has no adapters: what is evaluated is the model without LoRA' in ''.join(capfd.readouterr())


def test_starting_lora_from_a_plain_checkpoint_calls_nothing_missing(small_config, base, capfd):
    Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=1)).train()
    log = ''.join(capfd.readouterr())
    assert 'do not match exactly' not in log
    assert 'Masked attention stays on' not in log


def test_masks_that_nobody_anneals_are_warned_of(small_config, capfd):
    Runner.from_cfg(small_config(lora=True, max_iters=1)).train()
    assert 'Masked attention stays on for the whole run' in ''.join(capfd.readouterr())


def test_a_target_without_a_match_is_warned_of(small_config, capfd):
    config = small_config(lora=True, max_iters=1)
    config.custom_hooks[0].target_modules = ['qkv', 'fcc1']
    Runner.from_cfg(config).train()
    assert "target_modules ['fcc1'] matched no layer" in ''.join(capfd.readouterr())


@pytest.mark.parametrize(('batch', 'accumulated', 'says'), [(4, 4, None), (2, 4, 'train_dataloader.batch_size=4')])
def test_a_run_says_its_effective_batch_size_and_warns_where_the_learning_rates_are_tuned_for_another(
    batch, accumulated, says, small_config, capsys
):
    changes = {'train_dataloader.batch_size': batch, 'optim_wrapper.accumulative_counts': accumulated}
    Runner.from_cfg(small_config(max_iters=4, auto_scale_lr=dict(enable=False, base_batch_size=4), **changes)).train()
    out = capsys.readouterr().out
    assert f'Effective batch size {batch * accumulated} = {batch} per GPU × 1 GPUs' in out.replace('\n', ' ')
    assert ('Learning rates are tuned for 4 images per iteration' in out) == bool(says)
    assert says is None or says in out
