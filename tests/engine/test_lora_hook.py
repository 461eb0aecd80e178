"""LoRA through a real Runner: what changes, what is saved, and what evaluation sees."""

import re

import pytest
import torch
from conftest import run_tool
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner

from mmseg_eomt.adapters.names import adapter_names

NEW_PARTS = ('decode_head.query_embed', 'decode_head.class_head', 'decode_head.mask_head', 'decode_head.upscale')


def score_maps(runner: Runner) -> list[torch.Tensor]:
    """Class scores of the validation scenes."""
    loader = runner.val_dataloader if runner._val_loop else runner.test_dataloader
    runner.model.eval()
    with torch.no_grad():
        return [sample.seg_logits.data for batch in loader for sample in runner.model.val_step(batch)]


def test_only_adapters_and_the_heads_new_parts_change_bit_for_bit(small_config, base):
    start = CheckpointLoader.load_checkpoint(base)['state_dict']
    runner = Runner.from_cfg(small_config(lora=True, load_from=base))
    runner.train()

    changed, kept = set(), set()
    for name, parameter in runner.model.named_parameters():
        if '.lora_' in name:
            continue
        equal = torch.equal(parameter, start[name.replace('.base_layer', '')])
        (kept if equal else changed).add(name)
    assert changed == {name for name, _ in runner.model.named_parameters() if name.startswith(NEW_PARTS)}
    assert len(kept) > 50
    adapters = [runner.model.get_parameter(name) for name in adapter_names(runner.model)]
    assert len(adapters) == 2 * 2 * 4  # A and B of qkv and proj of four blocks
    assert all(parameter.abs().max() > 0 for parameter in adapters)  # B starts at 0


def test_the_optimizer_and_scheduler_hold_the_adapted_tree_at_the_right_rate(small_config, base):
    runner = Runner.from_cfg(small_config(lora=True, load_from=base))
    runner.train()

    held = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params'] if p.requires_grad}
    assert held == {id(p) for p in runner.model.parameters() if p.requires_grad}
    assert all(scheduler.optimizer is runner.optim_wrapper for scheduler in runner.param_schedulers)
    rates = runner.message_hub.get_scalar('train/lr').data[0]
    plain = Runner.from_cfg(small_config(name='plain'))
    plain.train()
    assert list(rates) == list(plain.message_hub.get_scalar('train/lr').data[0])


def test_evaluating_the_checkpoint_gives_the_predictions_of_the_end_of_training(small_config, base, config_file):
    config = small_config(lora=True, load_from=base)
    runner = Runner.from_cfg(config)
    runner.train()
    expected = score_maps(runner)
    checkpoint = f'{runner.work_dir}/iter_3.pth'

    tester = Runner.from_cfg(small_config(lora=True, load_from=checkpoint, name='test'))
    tester.test()
    for given, wanted in zip(score_maps(tester), expected):
        assert torch.allclose(given, wanted, atol=1e-5)  # the adapters are merged for evaluation
    assert not adapter_names(tester.model)

    out = f'{runner.work_dir}/predictions'
    run_tool('tools/test.py', config_file(config), checkpoint, '--out', out, '--work-dir', f'{runner.work_dir}/test')
    import cv2

    names = sorted(sample.img_path for batch in runner.val_dataloader for sample in batch['data_samples'])
    for name, scores in zip(names, expected):
        saved = cv2.imread(f'{out}/{name.rsplit("/", 1)[1]}', cv2.IMREAD_GRAYSCALE)
        assert (torch.from_numpy(saved) == scores.argmax(0)).float().mean() > 0.999


def test_a_resumed_run_goes_on_with_adapters_optimizer_and_rate(small_config, base):
    whole = Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=4, name='whole'))
    whole.train()
    stopped = Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=2))
    stopped.train()
    before = {name: stopped.model.get_parameter(name).clone() for name in adapter_names(stopped.model)}

    resumed = Runner.from_cfg(small_config(lora=True, resume=True, max_iters=4))
    loaded = {}
    load = resumed.load_or_resume

    def load_and_look() -> None:
        load()
        loaded.update({name: resumed.model.get_parameter(name).clone() for name in adapter_names(resumed.model)})

    resumed.load_or_resume = load_and_look
    resumed.train()

    assert resumed.iter == 4
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], value) for name, value in before.items())
    steps = {int(state['step']) for state in resumed.optim_wrapper.optimizer.state_dict()['state'].values()}
    assert steps == {4}
    rates, expected = (list(runner.message_hub.get_scalar('train/lr').data[0]) for runner in (resumed, whole))
    assert rates[-4:] == expected


def test_rates_are_scaled_with_the_batch_size(small_config, base):
    runner = Runner.from_cfg(
        small_config(lora=True, load_from=base, max_iters=1, auto_scale_lr=dict(enable=True, base_batch_size=1))
    )
    runner.train()
    assert runner.optim_wrapper.optimizer.defaults['lr'] == 5e-4
    assert runner.optim_wrapper.param_groups[0]['initial_lr'] == 1e-3  # batches of 2


def test_frozen_batch_norms_keep_their_statistics(small_config):
    config = small_config(lora=True, max_iters=1, name='resnet')
    resnet = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'), init_cfg=None)
    config.model.backbone = resnet
    config.model.decode_head.update(in_channels=512, patch_size=32)
    runner = Runner.from_cfg(config)
    before = {name: value.clone() for name, value in runner.model.backbone.named_buffers()}
    runner.train()
    assert before
    assert all(torch.equal(value, before[name]) for name, value in runner.model.backbone.named_buffers())
    assert runner.model.decode_head.input_projection.weight.requires_grad


def test_a_frozen_model_of_random_weights_is_warned_of(small_config, base, capfd):
    Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=1)).train()
    assert 'random weights' not in ''.join(capfd.readouterr())
    Runner.from_cfg(small_config(lora=True, max_iters=1)).train()
    assert re.search(r'freezes random weights: (\d+) of \1 frozen parameters', ''.join(capfd.readouterr()))


def test_a_checkpoint_of_another_scale_is_refused(small_config):
    runner = Runner.from_cfg(small_config(lora=True, max_iters=1))
    runner.train()
    config = small_config(lora=True, load_from=f'{runner.work_dir}/iter_1.pth', name='test')
    config.custom_hooks[0].lora_alpha = 8
    with pytest.raises(ValueError, match=r'trained with other adapters .*lora_alpha: 32, here 8'):
        Runner.from_cfg(config).test()


def test_a_head_that_was_forgotten_in_trainable_modules_is_warned_of(small_config, base, tmp_path, capfd):
    """Frozen at random weights, it would train nothing."""
    checkpoint = torch.load(base, weights_only=True)
    for name in [name for name in checkpoint['state_dict'] if 'class_head' in name]:
        del checkpoint['state_dict'][name]
    torch.save(checkpoint, tmp_path / 'headless.pth')
    changes = {'custom_hooks.0.trainable_modules': [], 'load_from': str(tmp_path / 'headless.pth'), 'max_iters': 1}
    Runner.from_cfg(small_config(lora=True, **changes)).train()
    assert re.search(r'2 of \d+ frozen parameters, such as decode_head.class_head.weight', ''.join(capfd.readouterr()))


def test_evaluating_before_training_in_one_runner_is_refused(small_config):
    runner = Runner.from_cfg(small_config(lora=True))
    runner.val()
    with pytest.raises(ValueError, match='train in a new one'):
        runner.train()


def test_test_time_augmentation_sees_the_adapters(small_config, config_file):
    config = small_config(lora=True, max_iters=1)
    runner = Runner.from_cfg(config)
    runner.train()
    config.tta_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='Resize', scale=(128, 64), keep_ratio=True)],
                [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
                [dict(type='LoadAnnotations')],
                [dict(type='PackSegInputs')],
            ],
        ),
    ]
    log = run_tool('tools/test.py', config_file(config), f'{runner.work_dir}/iter_1.pth', '--tta').stdout
    assert 'of all parameters train' in log
    assert 'mIoU' in log
    assert 'unexpected key' not in log and 'missing keys' not in log


def test_the_summary_is_printed_and_weights_are_initialised_once(small_config, capfd):
    runner = Runner.from_cfg(small_config(lora=True))
    runner.train()
    log = ''.join(capfd.readouterr())
    assert 'of all parameters train' in log
    assert 'matched layers per target: proj 4, q_proj 0, qkv 4, v_proj 0' in log
    assert 'more than once' not in log
    assert 'init_weights' not in vars(runner.model)


def test_training_and_then_testing_in_one_runner_adapts_once(small_config):
    runner = Runner.from_cfg(small_config(lora=True))
    runner.train()
    names = adapter_names(runner.model)
    runner.test()
    assert adapter_names(runner.model) == names


def test_pretrained_weights_come_first_and_the_head_keeps_its_new_parts(small_config, tmp_path):
    from conftest import reference

    release = tmp_path / 'dinov2_pretrain.pth'
    torch.save(reference('dinov2_release_to_16.pt')['release_state_dict'], release)
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=str(release))
    arch = dict(_delete_=True, embed_dims=48, num_layers=2, num_heads=3)
    changes = {
        f'model.{part}.{key}': value
        for part in ('backbone', 'decode_head')
        for key, value in dict(arch=arch, num_joint_blocks=1, init_cfg=init_cfg).items()
    }
    config = small_config(lora=True, **changes)
    runner = Runner.from_cfg(config)
    runner.train()

    weights = torch.load(release, weights_only=True)
    for part, i in ((runner.model.backbone, 0), (runner.model.decode_head, 1)):
        layer = part.blocks[0].attn.qkv
        assert torch.equal(layer.base_layer.weight, weights[f'blocks.{i}.attn.qkv.weight'])
        assert layer.lora_B['default'].weight.abs().max() > 0


def test_the_flexible_runner_is_refused_in_one_sentence(small_config):
    config = small_config(lora=True)
    with pytest.raises(ValueError, match='not with FlexibleRunner'):
        FlexibleRunner.from_cfg(config).train()


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_a_lora_checkpoint_in_a_config_without_the_hook_is_refused(small_config, lora, mode):
    plain = Runner.from_cfg(small_config(name='plain', load_from=lora))
    with pytest.raises(RuntimeError, match=r'has LoRA adapters .* add LoRAHook'):
        getattr(plain, mode)()
