"""EoMT's backbone and head with the toolbox's, plain and with LoRA: trained, evaluated, saved and reloaded."""

import ast
import re

import pytest
import torch
from conftest import ROOT, SMALL_ARCH
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from torch import nn

from mmseg_eomt.adapters import inject, load_adapter, lora_config, merge, save_adapter
from mmseg_eomt.adapters.names import is_adapter, is_in_modules, plain_name, tuner_layers
from mmseg_eomt.engine import LoRAHook

PAGE = (ROOT / 'docs' / 'mixing.md').read_text(encoding='utf-8')
NORM = dict(type='BN', requires_grad=True)
LOSS = dict(type='CrossEntropyLoss')

EOMT_VIT = dict(type='EoMTViT', arch=SMALL_ARCH, img_size=64, num_joint_blocks=0, out_indices=(0, 1, 2, 3))
LATERAL_VIT = dict(type='LateralViT', arch=SMALL_ARCH, img_size=64)
TRANSFORMER = dict(img_size=(64, 64), patch_size=16, embed_dims=32, num_layers=2, num_heads=2, out_indices=(0, 1))
# zero_init_residual multiplies all blocks by zero until their norms are trained
RESNET = dict(type='ResNetV1c', depth=18, base_channels=16, stem_channels=16, norm_cfg=NORM, zero_init_residual=False)
ONE_STRIDE = dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 1))  # of the last two stages
THREE_STAGES = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
SWIN = dict(type='SwinTransformer', embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 2), window_size=4)
MIT = dict(type='MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 2, 4])
VIT = dict(TRANSFORMER, type='VisionTransformer', output_cls_token=True)
BEIT = dict(TRANSFORMER, type='BEiT')
PYRAMID = dict(type='Feature2Pyramid', embed_dim=32, rescales=[4, 2, 1, 0.5], norm_cfg=NORM)


def head(type: str, **settings) -> dict:
    """A head of the toolbox, on the backbone's last map unless the settings say otherwise."""
    maps = dict(in_channels=32, in_index=-1, channels=16)
    return {**maps, 'type': type, 'num_classes': 19, 'norm_cfg': NORM, 'loss_decode': LOSS, **settings}


def four_maps(type: str, in_channels: tuple[int, ...] = (32,) * 4, **settings) -> dict:
    """The same, on four maps."""
    return head(type, in_channels=in_channels, in_index=[0, 1, 2, 3], **settings)


def eomt_head(in_channels: int, patch_size: int, in_index: int = -1) -> dict:
    """EoMTHead on a map of so many channels and this stride."""
    sizes = dict(arch=SMALL_ARCH, num_joint_blocks=2, num_queries=12, num_points=128)
    return dict(type='EoMTHead', num_classes=19, in_channels=in_channels, patch_size=patch_size, in_index=in_index, **sizes)


def pmt_head(in_channels: tuple[int, ...], patch_size: int, in_index: tuple[int, ...]) -> dict:
    """PMTHead on maps of so many channels and one stride."""
    sizes = dict(arch=SMALL_ARCH, num_blocks=2, mlp_hidden_dims=32, num_queries=12, num_points=128)
    return dict(type='PMTHead', num_classes=19, in_channels=in_channels, patch_size=patch_size, in_index=in_index, **sizes)


SEGMENTER = dict(num_layers=1, num_heads=2, embed_dims=32, norm_cfg=dict(type='LN'))
# backbone, head, and what else there is
PAIRS = {
    'EoMTViT + FCN': (EOMT_VIT, head('FCNHead', num_convs=1), {}),
    'EoMTViT + linear': (EOMT_VIT, head('FCNHead', num_convs=0, channels=32, concat_input=False), {}),
    'EoMTViT + UPer': (EOMT_VIT, four_maps('UPerHead', pool_scales=(1, 2)), dict(neck=PYRAMID)),
    'EoMTViT + SETR-PUP': (EOMT_VIT, head('SETRUPHead', num_convs=2, up_scale=2), {}),
    'EoMTViT + SETR-MLA': (EOMT_VIT, four_maps('SETRMLAHead', channels=32, mla_channels=8), {}),
    'EoMTViT + Segmenter': (EOMT_VIT, head('SegmenterMaskTransformerHead', **SEGMENTER), {}),
    'EoMTViT + SegFormer': (EOMT_VIT, four_maps('SegformerHead'), {}),
    'EoMTViT + EoMTHead and FCN': (
        dict(EOMT_VIT, num_joint_blocks=2, out_indices=(0, 1)),
        eomt_head(32, 16),
        dict(auxiliary_head=head('FCNHead', in_index=0, num_convs=1)),
    ),
    'ResNet + EoMTHead': (RESNET, eomt_head(128, 32), {}),
    'ResNet of stride 16 + EoMTHead': (dict(RESNET, **THREE_STAGES), eomt_head(64, 16), {}),
    'Swin + EoMTHead': (SWIN, eomt_head(128, 32), {}),
    'MiT + EoMTHead': (MIT, eomt_head(32, 32), {}),
    'ViT + EoMTHead': (VIT, eomt_head(32, 16), {}),
    'BEiT + EoMTHead': (BEIT, eomt_head(32, 16), {}),
    'LateralViT + PMTHead': (LATERAL_VIT, pmt_head((32,) * 4, 16, (0, 1, 2, 3)), {}),
    'ResNet + PMTHead': (dict(RESNET, **ONE_STRIDE), pmt_head((64, 128), 16, (2, 3)), {}),
    'ViT + PMTHead': (VIT, pmt_head((32, 32), 16, (0, 1)), {}),
    'Swin + UPer': (SWIN, four_maps('UPerHead', (16, 32, 64, 128), pool_scales=(1, 2)), {}),
}
QUERY_HEADS = ('EoMTHead', 'PMTHead')
WHOLE = ('ResNet + EoMTHead', 'Swin + EoMTHead', 'MiT + EoMTHead', 'ViT + EoMTHead', 'EoMTViT + UPer', 'Swin + UPer')


def page_targets(part: str) -> list[str]:
    """All ``target_modules`` that the page's table has for a backbone or head."""
    row = re.search(rf'^\| .*`{part}`.* \|(.*)\|$', PAGE, re.M)
    return [target for names in re.findall(r'`(\[.*?\])`', row[1]) for target in ast.literal_eval(names)]


def mixed_config(small_config, pair: str, lora: bool, name: str = 'run', **changes) -> Config:
    """The pair in the suite's small config; masks, and what was random, are as in any other run."""
    backbone, decode_head, others = PAIRS[pair]
    config = small_config(max_iters=2, name=name)
    for part, settings in dict(backbone=backbone, decode_head=decode_head, **others).items():
        config.model[part] = settings
    if pair in WHOLE:
        config.model.test_cfg = dict(mode='whole')
    config.optim_wrapper.optimizer.lr = 1e-2  # so that two iterations change scores by more than rounding does
    config.param_scheduler = []
    config.custom_hooks = []
    if decode_head['type'] in QUERY_HEADS:
        config.custom_hooks = [dict(type='MaskAnnealingHook', start_iters=[0, 1], end_iters=[1, 2])]
    if lora:
        hook = dict(type='LoRAHook', r=4, lora_alpha=8, lora_dropout=0.0, target_modules=page_targets(backbone['type']))
        if decode_head['type'] == 'EoMTHead':
            hook['target_modules'] = [*hook['target_modules'], *page_targets('EoMTHead')]
            hook['trainable_modules'] = [*LoRAHook().trainable_modules, *others]
        else:
            hook['trainable_modules'] = ['decode_head', *others]
        config.custom_hooks.append(hook)
    config.merge_from_dict(changes)
    return config


def score_maps(runner: Runner) -> list[torch.Tensor]:
    runner.model.eval()
    with torch.no_grad():
        return [sample.seg_logits.data for batch in runner.val_dataloader for sample in runner.model.val_step(batch)]


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {plain_name(name): parameter.detach().clone() for name, parameter in model.named_parameters()}


def part_of(name: str) -> str:
    return name.split('.')[0]


@pytest.mark.slow
@pytest.mark.parametrize('lora', [False, True], ids=['plain', 'LoRA'])
@pytest.mark.parametrize('pair', PAIRS)
def test_a_mixed_model_trains_evaluates_and_is_the_same_when_reloaded(small_config, pair, lora):
    config = mixed_config(small_config, pair, lora)
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    runner.model.init_weights = lambda: None  # as it is now
    start = values(runner.model)
    runner.train()
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 0

    changed = {name for name, value in values(runner.model).items() if name in start and not torch.equal(value, start[name])}
    parts = {part_of(name) for name in start}
    if not lora:
        assert {part_of(name) for name in changed} == parts
    else:
        whole = config.custom_hooks[-1].trainable_modules
        assert changed and all(is_in_modules(name, whole) for name in changed)
        layers = tuner_layers(runner.model)
        adapted = {part for part in parts if not is_in_modules(part, whole)}
        assert {part_of(name) for name in layers} == adapted
        assert not [name for name, layer in layers.items() if not layer.lora_B['default'].weight.any()]

    expected, checkpoint = score_maps(runner), f'{runner.work_dir}/iter_2.pth'
    trained = {name: value for name, value in runner.model.state_dict().items() if 'num_batches' not in name}
    model = init_model(config, checkpoint, device='cpu')
    loaded = model.state_dict()
    assert not [name for name, value in trained.items() if not torch.equal(value, loaded[name])]
    tester = Runner.from_cfg(mixed_config(small_config, pair, lora, 'test', load_from=checkpoint))
    metrics = tester.test()
    assert metrics['mIoU'] == pytest.approx(runner.message_hub.get_scalar('val/mIoU').current())
    for given, wanted in zip(score_maps(tester), expected):
        assert given.shape == wanted.shape == (19, 64, 128)
        assert torch.allclose(given, wanted, atol=1e-5)  # adapters are merged when testing


@pytest.mark.parametrize('size', [(70, 90), (100, 65)])
@pytest.mark.parametrize('pair', [pair for pair, (_, head, _) in PAIRS.items() if head['type'] in QUERY_HEADS])
def test_predictions_of_a_head_with_queries_have_the_images_size(small_config, pair, size):
    config = mixed_config(small_config, pair, False)
    config.test_pipeline = [step for step in config.test_pipeline if step['type'] != 'Resize']
    model = init_model(config, device='cpu')
    image = torch.randint(0, 255, (*size, 3), dtype=torch.uint8).numpy()
    assert inference_model(model, image).seg_logits.data.shape == (19, *size)


@pytest.mark.parametrize(
    'snippet', re.findall(r'```python\n_base_.*?\n(.*?)```', PAGE, re.S), ids=['UPer', 'ResNet', 'auxiliary']
)
def test_the_pages_configs_build_and_train(small_config, snippet):
    def settings(text: str) -> dict:
        found: dict = {}
        exec(text, found)
        return {name: found[name] for name in ('model', 'custom_hooks') if name in found}

    large = Config.fromfile(ROOT / 'configs' / 'eomt_cityscapes.py')
    large.merge_from_dict(settings(snippet))
    with torch.device('meta'):
        MODELS.build(large.model)

    small = {'SyncBN': 'BN', '1024': '32', '(5, 11, 17, 23)': '(0, 1, 2, 3)', '(11, -1)': '(0, -1)', '=256': '=16'}
    for shown, fitted in small.items():
        snippet = snippet.replace(shown, fitted)
    config = small_config(max_iters=1, default_hooks=dict(checkpoint=None))
    config.optim_wrapper.update(constructor=large.optim_wrapper.constructor, paramwise_cfg=large.optim_wrapper.paramwise_cfg)
    config.merge_from_dict(settings(snippet))
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.message_hub.get_scalar('train/loss').current() > 0


def test_the_page_names_what_is_tested():
    heads = [part['type'] for _, head, others in PAIRS.values() for part in (head, *others.values())]
    assert all(f'`{name}`' in PAGE for name in heads)
    assert all(page_targets(backbone['type']) for backbone, _, _ in PAIRS.values())


def test_adapters_in_layers_that_are_not_used_stop_the_run(small_config):
    config = mixed_config(small_config, 'ResNet + EoMTHead', True)
    config.model.decode_head.update(in_index=2, in_channels=64, patch_size=16)
    with pytest.raises(ValueError, match=r'adapters of 4 layers, such as backbone.layer4.0.conv1, .* exclude_modules'):
        Runner.from_cfg(config).train()


def test_adapters_in_a_weight_that_is_read_and_not_called_stop_the_run(small_config):
    changes = {'custom_hooks.1.peft': dict(use_dora=True)}
    with pytest.raises(ValueError, match=r'adapters of 2 layers, such as backbone.layers.0.attn.qkv'):
        Runner.from_cfg(mixed_config(small_config, 'BEiT + EoMTHead', True, **changes)).train()


@pytest.mark.parametrize('pair', ['BEiT + EoMTHead', 'ViT + EoMTHead'])
def test_adapters_in_weights_go_to_pefts_format_and_back(small_config, tmp_path, pair):
    config = mixed_config(small_config, pair, True)
    Runner.from_cfg(config).train()
    plain = mixed_config(small_config, pair, False)
    model = init_model(config, f'{config.work_dir}/iter_2.pth', device='cpu')
    other = init_model(plain, device='cpu')
    frozen = {plain_name(name): value for name, value in model.state_dict().items() if not is_adapter(name)}
    other.load_state_dict(frozen)
    image, meta = torch.randn(1, 3, 64, 64), [dict(img_shape=(64, 64), ori_shape=(64, 64))]
    with torch.no_grad():
        expected = model.encode_decode(image, meta)
        assert (other.encode_decode(image, meta) - expected).abs().max() > 1e-3
        save_adapter(model, tmp_path / 'adapter')
        load_adapter(other, tmp_path / 'adapter')
        assert torch.equal(other.encode_decode(image, meta), expected)
        merge(other, {'default': 1.0})
        assert torch.allclose(other.encode_decode(image, meta), expected, atol=1e-5)


@pytest.mark.parametrize('pair', ['BEiT + EoMTHead', 'ViT + EoMTHead'])
def test_an_average_of_a_run_with_adapters_in_weights_is_evaluated_and_kept(small_config, pair):
    config = mixed_config(small_config, pair, True)
    config.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    runner = Runner.from_cfg(config)
    runner.train()
    runner.model = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    expected = score_maps(runner)
    tester = Runner.from_cfg(mixed_config(small_config, pair, True, 'test', load_from=f'{runner.work_dir}/iter_2.pth'))
    tester.test()
    assert all(torch.allclose(given, wanted, atol=1e-5) for given, wanted in zip(score_maps(tester), expected))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'custom_hooks.1.lora_dropout': 0.1}, r"\['in_proj_weight'\] .* set lora_dropout=0, got 0.1"),
        ({'custom_hooks.1.target_modules': ['attn.attn']}, r"layers.0.attn.attn is PyTorch's own attention.*in_proj_weight"),
        ({'model.decode_head.patch_size': 32}, r'4×4 positions for 64×64 pixels, .* patch_size=32: .*, 16\.'),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_what_to_set(small_config, changes, message):
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(mixed_config(small_config, 'ViT + EoMTHead', True, **changes)).train()


@pytest.mark.parametrize('part', ['auxiliary_head', 'neck', 'decode_head'])
def test_no_other_part_takes_the_output_that_is_for_eomt_head(small_config, part):
    other = dict(neck=PYRAMID).get(part, head('FCNHead', in_index=1))
    config = mixed_config(small_config, 'EoMTViT + EoMTHead and FCN', False)
    config.model[part] = other
    config.custom_hooks = []
    with pytest.raises(ValueError, match=rf"^{part} takes the backbone's last output.*num_joint_blocks=2"):
        Runner.from_cfg(config).train()


@pytest.mark.parametrize('whole', [False, True], ids=['layer', 'encoder'])
def test_adapters_in_pytorchs_own_transformer_layers_are_used_in_training_and_evaluation(whole):
    """These read the attention's weights themselves, and in evaluation hand them to a kernel of their own."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2) if whole else layer)
    x = torch.rand(2, 5, 32)
    plain = model.train()(x)
    inject(model, lora_config(r=4, lora_alpha=8, lora_dropout=0, target_modules=['in_proj_weight'], exclude_modules=()))
    for name, parameter in model.named_parameters():
        if 'lora_B' in name:
            nn.init.normal_(parameter)
    trained = model.train()(x)
    with torch.no_grad():
        evaluated = model.eval()(x)
    assert not torch.allclose(trained, plain, atol=1e-2)
    assert torch.allclose(evaluated, trained, atol=1e-5)
    merge(model)
    assert torch.allclose(model.eval()(x), trained, atol=1e-5)
