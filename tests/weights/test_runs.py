"""Public checkpoints through the ways a user has: load_from, init_cfg, init_model, tools/test.py, with and without LoRA."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL_ARCH, merged, run_tool
from layouts import Sizes, dinov2_release, hf_dinov3, public_eomt, public_eomt_dinov3, timm_vit
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmseg.apis import init_model
from safetensors.torch import save_file

from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.resize import resize_pos_embed
from mmseg_eomt.models.segmentor import share_vit
from mmseg_eomt.weights.checkpoint import from_segmentor, parse_checkpoint
from mmseg_eomt.weights.convert import to_eomt
from mmseg_eomt.weights.formats import EOMT, HF_EOMT

FITTING = dict(dims=32, heads=2, layers=4, hidden=128, gated=False, patch=16, grid=4, joint=2, queries=12, classes=19)
ROTARY = dict(embed_dims=32, num_layers=4, num_heads=2, rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv', norm_eps=1e-5)
ROTARY = {f'model.{part}.arch': dict(_delete_=True, **ROTARY) for part in ('backbone', 'decode_head')}


def write(tmp_path, layout=public_eomt, seed=0, name='public.bin', **changes) -> tuple[str, dict]:
    """A file that fits the small config but for the changes, and its content."""
    content = layout(Sizes(seed, **{**FITTING, **changes}))
    torch.save(content, tmp_path / name)
    return str(tmp_path / name), content


def ours(runner: Runner) -> dict:
    return {name: value for name, value in from_segmentor(runner.model.state_dict()).items() if name != 'pos_grid'}


def start(config) -> Runner:
    """Load what a run starts from, and train no step."""
    config.train_cfg.update(max_iters=0, val_interval=1)
    config.param_scheduler, config.val_dataloader, config.val_cfg, config.val_evaluator = [], None, None, None
    config.custom_hooks = [hook for hook in config.custom_hooks if hook['type'] != 'MaskAnnealingHook']
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


@pytest.mark.parametrize('where', ['load_from', 'init_cfg', 'model.init_cfg'])
def test_training_starts_from_a_panoptic_eomt_with_its_class_head_made_anew(small_config, tmp_path, where):
    path, content = write(tmp_path, classes=133, queries=20)
    init_cfg = dict(type='Pretrained', checkpoint=path, _delete_=True)
    changes = {
        'load_from': dict(load_from=path),
        'init_cfg': {'model.backbone.init_cfg': init_cfg, 'model.decode_head.init_cfg': init_cfg},
        'model.init_cfg': {'model.init_cfg': dict(type='Pretrained', checkpoint=path)},
    }[where]

    runner = start(small_config(**changes))

    given, expected = ours(runner), EOMT.read(content)
    assert given['class_head.weight'].shape == (20, 32)
    assert torch.equal(given['query_embed.weight'], expected['query_embed.weight'][:12])
    for name, value in given.items():
        if not name.startswith(('class_head', 'query_embed', 'attn_mask_probs')):
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize('hooks', [True, False])
def test_what_was_adapted_is_said_once(small_config, tmp_path, capsys, hooks):
    path, _ = write(tmp_path, classes=133, queries=5, joint=3, grid=6, patch=8)
    config = small_config(max_iters=1, load_from=path)
    config.custom_hooks = config.custom_hooks if hooks else []
    Runner.from_cfg(config).train()

    log = capsys.readouterr().out
    for line in (
        'loaded                ',
        'adapted               patches 8 → 16 pixels; positions 6×6 → 4×4; queries 5 → 12, they are repeated; joint',
        'ignored               criterion.empty_weight; network.encoder.pixel_mean; network.encoder.pixel_std',
        'randomly initialised  class_head (133 classes in the checkpoint, 19 here)',
    ):
        assert log.count(line) == 1, line


@pytest.mark.slow
def test_a_hugging_face_folder_predicts_as_the_public_file_does(small_config, config_file, tmp_path):
    path, content = write(tmp_path)
    folder = tmp_path / 'hf'
    folder.mkdir()
    save_file(HF_EOMT.write(EOMT.read(content)), folder / 'model.safetensors')
    config = small_config()
    models = [init_model(config.copy(), source, device='cpu') for source in (path, str(folder))]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        scores = [model.encode_decode(image, [dict(img_shape=(64, 64), ori_shape=(64, 64))]) for model in models]
    assert torch.equal(*scores)
    assert torch.equal(models[0].decode_head.class_head.weight, content['network.class_head.weight'])

    outputs = [run_tool('tools/test.py', config_file(config), source).stdout for source in (path, folder)]
    results = [re.search(r'aAcc: [\d.]+  mIoU: [\d.]+', log).group() for log in outputs]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(classes=133), '133 classes, the model 19'),
        (dict(queries=20), '20 queries, the model 12'),
        (dict(joint=3), '3 joint blocks, the model 2'),
        (dict(layout=dinov2_release, registers=4), 'ViT without the heads of an EoMT: train it first'),
    ],
)
def test_nothing_is_made_anew_to_predict_with(small_config, tmp_path, changes, message):
    path, _ = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        init_model(small_config(), path, device='cpu')
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(small_config(load_from=path)).test()


def test_training_starts_from_a_vit_in_load_from(small_config, tmp_path):
    path, content = write(tmp_path, layout=dinov2_release, registers=4)
    given = ours(start(small_config(load_from=path)))
    assert torch.equal(given['blocks.3.attn.qkv.weight'], content['blocks.3.attn.qkv.weight'])


def test_an_own_checkpoint_starts_a_run_of_other_classes_queries_and_split(small_config, base, tmp_path):
    changes = {f'model.{part}.num_joint_blocks': 3 for part in ('backbone', 'decode_head')}
    changes |= {'model.decode_head.num_classes': 5, 'model.decode_head.num_queries': 30, 'model.backbone.img_size': (96, 64)}
    config = small_config(load_from=base, **changes)
    suffixes = dict(img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png')
    config.train_dataloader.dataset.update(type='BaseSegDataset', metainfo=dict(classes=tuple('abcde')), **suffixes)
    config.default_hooks.data_check.splits = []  # no iteration is run on these labels
    given = ours(start(config))

    expected = from_segmentor(torch.load(base, weights_only=True)['state_dict'])
    for name in ('blocks.0.attn.qkv.weight', 'blocks.3.mlp.fc2.bias', 'norm.weight', 'upscale.1.conv1.weight'):
        assert torch.equal(given[name], expected[name])
    assert torch.equal(given['query_embed.weight'][24:], expected['query_embed.weight'][:6])
    assert given['class_head.weight'].shape == (6, 32)
    assert given['pos_embed'].shape == (1, 24, 32)
    with pytest.raises(ValueError, match=r'19 classes, the model 5; 12 queries, the model 30; 2 joint blocks, the model 3'):
        Runner.from_cfg(small_config(load_from=base, **changes)).test()
    del changes['model.decode_head.num_classes']
    place(base, tmp_path / 'run')
    with pytest.raises(ValueError, match='12 queries, the model 30'):
        Runner.from_cfg(small_config(load_from=base, resume=True, max_iters=4, **changes)).train()


@pytest.mark.parametrize('where', ['load_from', 'init_cfg'])
def test_lora_on_a_delta_and_its_base_is_found_again(small_config, tmp_path, where):
    _, content = write(tmp_path, layout=public_eomt_dinov3, name='delta.bin', classes=133)
    encoder = 'network.encoder.backbone.'
    delta = {name: 0.01 * value if name.startswith(encoder) else value for name, value in content.items()}
    torch.save(delta, tmp_path / 'delta.bin')
    write(tmp_path, layout=hf_dinov3, seed=1, name='dinov3.bin')
    source = f'{tmp_path}/delta.bin+{tmp_path}/dinov3.bin'
    init_cfg = dict(type='Pretrained', checkpoint=source, _delete_=True)
    starts = (
        {'load_from': source}
        if where == 'load_from'
        else {
            'model.backbone.init_cfg': init_cfg,
            'model.decode_head.init_cfg': init_cfg,
        }
    )
    runner = Runner.from_cfg(small_config(lora=True, max_iters=1, **ROTARY, **starts))
    runner.train()
    expected, saved = runner.model.state_dict(), f'{runner.work_dir}/iter_1.pth'
    slim = torch.load(saved, weights_only=True)
    assert not [name for name in slim['state_dict'] if name.endswith('mlp.fc1.weight')]
    assert slim['state_dict']['decode_head.class_head.weight'].shape == (20, 32)

    model = init_model(small_config(lora=True, **ROTARY), saved, device='cpu')
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    torch.save({name: 1.5 * value for name, value in delta.items()}, tmp_path / 'delta.bin')
    with pytest.raises(ValueError, match='another base'):
        init_model(small_config(lora=True, **ROTARY), saved, device='cpu')


def test_a_delta_without_its_base_is_refused_before_a_run(small_config, tmp_path):
    _, content = write(tmp_path, layout=public_eomt_dinov3, name='delta.bin')
    torch.save({n: 0.01 * v if 'backbone' in n else v for n, v in content.items()}, tmp_path / 'delta.bin')
    for how in ({'load_from': str(tmp_path / 'delta.bin')}, {}):
        with pytest.raises(ValueError, match=r'differences to DINOv3, not weights: name it together.*delta.bin\+hf://'):
            if how:
                Runner.from_cfg(small_config(**ROTARY, **how)).train()
            else:
                init_model(small_config(**ROTARY), str(tmp_path / 'delta.bin'), device='cpu')


def test_an_averaged_copy_starts_from_the_fitted_weights(small_config, tmp_path):
    path, content = write(tmp_path, classes=133)
    config = small_config(max_iters=1, load_from=path)
    config.custom_hooks.insert(0, dict(type='EMAHook', momentum=0.01))
    config.update(optim_wrapper=dict(optimizer=dict(lr=0.0)))
    runner = Runner.from_cfg(config)
    runner.train()
    saved = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)
    for key, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
        given = saved[key][f'{prefix}backbone.blocks.0.attn.qkv.weight']
        assert torch.equal(given, content['network.encoder.backbone.blocks.0.attn.qkv.weight']), key


def test_the_backbone_of_another_segmentor_is_a_start_too(small_config, tmp_path):
    content = timm_vit(Sizes(0, **{**FITTING, 'registers': 4, 'scales': True}))
    other = {f'backbone.{name}': value for name, value in content.items() if 'head' not in name}
    torch.save(dict(state_dict=other | {'decode_head.conv_seg.weight': torch.zeros(2)}), tmp_path / 'fcn.pth')
    given = ours(start(small_config(load_from=str(tmp_path / 'fcn.pth'))))
    assert torch.equal(given['blocks.3.attn.qkv.weight'], content['blocks.3.attn.qkv.weight'])


def place(checkpoint: str, work_dir: Path) -> None:
    """Put a file where a run looks for its own first checkpoint."""
    work_dir.mkdir(exist_ok=True)
    shutil.copy(checkpoint, work_dir / 'iter_1.pth')


@pytest.mark.parametrize('lora', [False, True])
def test_public_weights_are_not_resumed(small_config, tmp_path, lora):
    path, _ = write(tmp_path)
    place(path, tmp_path / 'run')
    config = small_config(lora=lora, load_from=path, resume=True)
    with pytest.raises(ValueError, match=r'iter_1.pth holds no optimizer to resume: to start from it, leave out --resume'):
        Runner.from_cfg(config).train()


def test_a_run_without_any_hook_of_the_plugin_is_checked_too(small_config, tmp_path, capfd):
    path, _ = write(tmp_path, layout=dinov2_release, registers=4)
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=path)
    for changes, message in (
        ({'model.backbone.init_cfg': init_cfg}, 'init_cfg of backbone and decode_head must be equal'),
        ({'model.backbone.num_joint_blocks': 1}, 'num_joint_blocks of backbone and decode_head must be equal'),
        ({'model.decode_head.num_classes': 7}, '19 classes, but num_classes of decode_head is 7'),
    ):
        config = small_config(**changes)
        config.model = dict(share_vit(config.model), type='EncoderDecoder')  # which compares nothing when it is built
        config.custom_hooks = []
        with pytest.raises(ValueError, match=message):
            Runner.from_cfg(config).train()
    config = small_config(max_iters=1)
    config.custom_hooks = []
    Runner.from_cfg(config).train()
    log = ''.join(capfd.readouterr())
    assert log.count('Neither init_cfg nor load_from names a checkpoint') == 1
    assert log.count('Masked attention stays on for the whole run') == 1


def test_masks_that_are_annealed_stay_off_with_another_split(small_config, tmp_path, capfd):
    path, _ = write(tmp_path, joint=3)
    config = small_config(max_iters=1, load_from=path)
    config.custom_hooks = []
    runner = Runner.from_cfg(config)
    runner.train()
    log = ''.join(capfd.readouterr())
    assert runner.model.decode_head.mask_probs == (0.0, 0.0)
    assert 'Masked attention' not in log and 'do not match exactly' not in log


@pytest.mark.parametrize('grids', [((64, 64), (32, 128)), ((32, 64), (64, 32))])
def test_positions_of_as_many_patches_in_another_shape_are_interpolated(small_config, tmp_path, grids):
    """As many rows and columns in all, in another order: taken over as they are, they would be scrambled."""
    given, wanted = grids
    config = small_config(**{'model.backbone.img_size': given})
    model = init_model(config, device='cpu')
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'own.pth')
    other = init_model(small_config(**{'model.backbone.img_size': wanted}), str(tmp_path / 'own.pth'), device='cpu')
    sizes = [tuple(side // 16 for side in size) for size in grids]
    expected = resize_pos_embed(model.backbone.pos_embed, *sizes)
    assert torch.equal(other.backbone.pos_embed, expected)
    assert not torch.allclose(expected, model.backbone.pos_embed, atol=1e-3)


def test_a_run_is_not_resumed_with_another_size_of_images(small_config, base, tmp_path):
    place(base, tmp_path / 'run')
    with pytest.raises(ValueError, match='another img_size than the run to resume'):
        Runner.from_cfg(small_config(load_from=base, resume=True, max_iters=4, **{'model.backbone.img_size': 96})).train()


@pytest.mark.parametrize('bare', [False, True])
def test_an_own_state_dict_of_a_compiled_model_and_a_bare_one_are_loaded(small_config, base, tmp_path, bare):
    weights = torch.load(base, weights_only=True)['state_dict']
    torch.save(weights if bare else {f'_orig_mod.{name}': v for name, v in weights.items()}, tmp_path / 'own.pth')
    model = init_model(small_config(), str(tmp_path / 'own.pth'), device='cpu')
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


RECT = {'model.backbone.img_size': (80, 160), 'model.backbone.num_register_tokens': 0}  # 5 × 10 = 1 + 7 × 7 places


@pytest.mark.parametrize('changes', [ROTARY, RECT], ids=['rotary', 'rect'])
def test_the_backbone_of_an_own_model_with_another_head_is_read_as_it_was_written(small_config, tmp_path, changes):
    head = dict(_delete_=True, type='FCNHead', in_channels=32, channels=8, num_convs=1, num_classes=19)
    changes = {**changes, 'model.backbone.num_joint_blocks': 0, 'model.decode_head': head}
    changes.pop('model.decode_head.arch', None)
    model = init_model(small_config(**changes), device='cpu')
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'fcn.pth')
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=str(tmp_path / 'fcn.pth'))
    runner = start(small_config(**changes, **{'model.backbone.init_cfg': init_cfg}))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(runner.model.backbone.state_dict()[name], value), name


@pytest.mark.parametrize('wrapped', [True, False])
def test_a_run_starts_from_the_backbone_of_a_classifier(small_config, tmp_path, wrapped):
    vit = EoMTViT(SMALL_ARCH, 64, num_joint_blocks=0)
    weights = {f'backbone.{name}': value for name, value in vit.state_dict().items()}
    weights['head.fc.weight'] = torch.ones(10, 32)
    torch.save(dict(state_dict=weights) if wrapped else weights, tmp_path / 'classifier.pth')
    runner = start(small_config(load_from=str(tmp_path / 'classifier.pth')))
    loaded = from_segmentor(runner.model.state_dict())
    for name, value in vit.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize(('img_size', 'square'), [((64, 64), True), ((32, 64), False)])
def test_without_registers_a_square_model_alone_goes_to_the_public_format(small_config, tmp_path, img_size, square):
    sizes = {'model.backbone.img_size': img_size, 'model.backbone.num_register_tokens': 0}
    model = init_model(small_config(**sizes), device='cpu')
    found = parse_checkpoint(model.state_dict(), 'ours')
    if not square:
        with pytest.raises(ValueError, match='no registers and is not for square images'):
            to_eomt(found)
        return
    torch.save(to_eomt(found), tmp_path / 'public.bin')
    again = init_model(small_config(**sizes), str(tmp_path / 'public.bin'), device='cpu')
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_lora_finds_its_base_in_load_from_without_the_file_of_init_cfg(small_config, tmp_path):
    path, _ = write(tmp_path, classes=133)
    none = {f'model.{part}.init_cfg': None for part in ('backbone', 'decode_head')}
    runner = Runner.from_cfg(small_config(lora=True, max_iters=1, load_from=path, **none))
    runner.train()
    gone = dict(_delete_=True, type='Pretrained', checkpoint=str(tmp_path / 'not_downloaded.pth'))
    changes = {f'model.{part}.init_cfg': gone for part in ('backbone', 'decode_head')}
    tester = Runner.from_cfg(small_config(lora=True, load_from=f'{runner.work_dir}/iter_1.pth', name='test', **changes))
    tester.test()
    expected = merged(runner.model)
    assert all(torch.equal(value, expected[name]) for name, value in tester.model.state_dict().items())


def test_an_eomt_fills_a_head_on_another_backbone(small_config, tmp_path):
    path, content = write(tmp_path)
    resnet = dict(_delete_=True, type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'))
    changes = {'model.backbone': resnet, 'model.decode_head.in_channels': 512, 'model.decode_head.patch_size': 16}
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=path)
    runner = start(small_config(**changes, **{'model.decode_head.init_cfg': init_cfg}))
    assert torch.equal(runner.model.decode_head.query_embed.weight, content['network.q.weight'])


def test_a_file_of_another_kind_is_told_by_what_it_has(small_config, tmp_path):
    torch.save({'vision_model.encoder.layers.0.fc1.weight': torch.zeros(2)}, tmp_path / 'clip.bin')
    with pytest.raises(ValueError, match=r"in no format that is known here: it has \['vision_model"):
        init_model(small_config(), str(tmp_path / 'clip.bin'), device='cpu')


def test_a_model_that_is_no_whole_eomt_refuses_one_with_where_it_belongs(small_config, tmp_path):
    path, _ = write(tmp_path)
    head = dict(_delete_=True, type='FCNHead', in_channels=32, channels=8, num_convs=1, num_classes=19)
    changes = {'model.backbone.num_joint_blocks': 0, 'model.decode_head': head}
    with pytest.raises(ValueError, match='put it into init_cfg of the part'):
        init_model(small_config(**changes), path, device='cpu')
    MMLogger.get_instance('fcn')
    init_cfg = {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=path, _delete_=True)}
    runner = start(small_config(**changes, **init_cfg))
    assert runner.model.backbone.norm.weight.sum() != 32
