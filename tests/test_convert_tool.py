"""tools/convert_checkpoint.py: what it writes is read by the implementation it is for, and predicts the same."""

import signal

import pytest
import torch
from conftest import KILLED, reference, relative_error, run_tool
from layouts import Sizes, public_eomt, public_eomt_dinov3, timm_vit
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmseg.apis import init_model

from mmseg_eomt.whole import is_unfinished

transformers = pytest.importorskip('transformers')

REFERENCES = ['eomt_dinov2_reg4_tiny.pt', 'eomt_dinov3_tiny.pt']


def convert(*args: object, check: bool = True) -> str:
    return run_tool('tools/convert_checkpoint.py', *args, check=check).stdout


def config_of(given: dict) -> Config:
    arch = dict(embed_dims=given['embed_dims'], num_layers=given['depth'], num_heads=given['num_heads'])
    if 'rope_theta' in given:
        arch |= dict(rope_theta=given['rope_theta'], rope_rescale=2.0, qkv_bias='qv', norm_eps=given['layer_norm_eps'])
    parts = dict(arch=arch, num_joint_blocks=given['num_joint_blocks'], patch_size=given['patch_size'])
    head = dict(type='EoMTHead', num_classes=given['num_classes'], num_queries=given['num_queries'], **parts)
    backbone = dict(type='EoMTViT', img_size=given['img_size'], **parts)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    preprocessor = dict(type='SegDataPreProcessor', mean=mean, std=std)
    model = dict(type='EncoderDecoder', data_preprocessor=preprocessor, backbone=backbone, decode_head=head)
    return Config(dict(model=dict(model, test_cfg=dict(mode='whole')), default_scope='mmseg', test_pipeline=[]))


@pytest.fixture(params=REFERENCES)
def public(request, tmp_path) -> tuple[dict, str]:
    """The reference and a file of its weights."""
    data = reference(request.param)
    torch.save(data['state_dict'], tmp_path / 'public.bin')
    return data, str(tmp_path / 'public.bin')


def assert_predicts(model, data: dict) -> None:
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=list(data['image'])))['inputs']
        masks, classes = model.decode_head(model.backbone(inputs))
    assert relative_error(masks[-1], data['unmasked']['mask_logits'][-1]) < 1e-4
    assert relative_error(classes[-1], data['unmasked']['class_logits'][-1]) < 1e-4


def test_the_authors_checkpoint_goes_to_ours_and_back_unchanged(public, tmp_path):
    data, path = public
    log = convert(path, tmp_path / 'ours.pth', '--to', 'mmseg')
    convert(tmp_path / 'ours.pth', tmp_path / 'back.bin', '--to', 'eomt')

    assert 'public EoMT (DINOv' in log and 'ours.pth: ' in log
    for source in (path, str(tmp_path / 'ours.pth'), str(tmp_path / 'back.bin')):
        assert_predicts(init_model(config_of(data['config']), source, device='cpu'), data)
    back = torch.load(tmp_path / 'back.bin', weights_only=True)
    assert back.keys() - data['state_dict'].keys() == {'criterion.empty_weight'}
    for name, value in data['state_dict'].items():
        assert torch.allclose(back[name], value, atol=1e-6 if 'pixel' in name else 0), name
    assert back['criterion.empty_weight'].tolist() == pytest.approx([1] * 19 + [0.1])


@pytest.mark.slow
@pytest.mark.parametrize('layout', [public_eomt, public_eomt_dinov3])
@pytest.mark.parametrize('gated', [False, True])
def test_an_exported_folder_loads_in_transformers_and_predicts_the_same(layout, gated, tmp_path):
    sizes = dict(dims=64, heads=2, layers=3, hidden=176 if gated else 256, gated=gated, patch=16, grid=4, joint=2)
    content = layout(Sizes(0, **sizes))
    content['network.attn_mask_probs'] += 0.5  # stopped before its masks were annealed: none are used here
    torch.save(content, tmp_path / 'public.bin')
    rotary = layout is public_eomt_dinov3
    given = dict(embed_dims=64, depth=3, num_heads=2, patch_size=16, img_size=(64, 64), num_joint_blocks=2)
    given |= dict(num_queries=len(content['network.q.weight']), num_classes=len(content['network.class_head.weight']) - 1)
    config = config_of(given | (dict(rope_theta=50.0, layer_norm_eps=1e-5) if rotary else {}))
    if gated:
        for part in ('backbone', 'decode_head'):
            config.model[part].arch.update(mlp='swiglu', mlp_hidden_dims=176)
    config.dump(tmp_path / 'config.py')
    options = ('--to', 'hf', '--config', tmp_path / 'config.py', '--img-size', 64)
    if gated and rotary:
        assert 'SiLU and GELU: it cannot be expressed there' in convert(tmp_path / 'public.bin', 'x', *options, check=False)
        return
    convert(tmp_path / 'public.bin', tmp_path / 'hf', *options)

    theirs, told = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not any(told.values()), told
    if not gated:
        convert(tmp_path / 'hf', tmp_path / 'again.pth', '--to', 'mmseg')
    images = torch.randn(2, 3, 64, 64)
    for source in ('public.bin', 'hf') if gated else ('public.bin', 'hf', 'again.pth'):
        model = init_model(config.copy(), str(tmp_path / source), device='cpu')
        with torch.no_grad():
            expected = theirs.eval()(images)
            masks, scores = model.decode_head(model.backbone(images))
        assert relative_error(masks[-1], expected.masks_queries_logits) < 1e-4
        assert relative_error(scores[-1], expected.class_queries_logits) < 1e-4


@pytest.mark.slow
def test_a_trained_checkpoint_takes_its_class_names_along(small_config, config_file, base, tmp_path):
    config = config_file(small_config())
    convert(base, tmp_path / 'hf', '--to', 'hf', '--config', config)
    theirs = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path / 'hf')
    assert theirs.config.id2label[0] == 'road' and theirs.config.id2label[18] == 'bicycle'
    assert theirs.config.num_attention_heads == 2

    convert(base, tmp_path / 'copy.safetensors', '--to', 'mmseg')
    weights = CheckpointLoader.load_checkpoint(str(tmp_path / 'copy.safetensors'), logger='silent')['state_dict']
    given = torch.load(base, weights_only=True)['state_dict']
    assert weights.keys() == given.keys() and all(torch.equal(weights[name], given[name]) for name in given)


@pytest.mark.slow
@pytest.mark.parametrize(('target', 'to'), [('out.pth', 'mmseg'), ('out.safetensors', 'mmseg'), ('out', 'hf')])
def test_a_conversion_that_is_killed_leaves_nothing_of_that_name(small_config, config_file, base, tmp_path, target, to):
    options = ('--to', to, '--config', config_file(small_config()))
    out = tmp_path / 'folder' / target
    done = run_tool('python', '-c', KILLED, 'tools/convert_checkpoint.py', base, out, *options, check=False)
    assert done.returncode == -signal.SIGKILL
    assert all(is_unfinished(path) for path in out.parent.rglob('*') if path.is_file()) and not out.exists()


@pytest.mark.slow
def test_what_cannot_be_converted_is_refused_in_one_sentence(small_config, config_file, base, lora, tmp_path):
    torch.save(timm_vit(Sizes(0)), tmp_path / 'vit.pth')
    (tmp_path / 'there').mkdir()
    other, clip = (
        {f'model.{part}.arch.{key}': value for part in ('backbone', 'decode_head')}
        for key, value in (('num_layers', 5), ('mlp', 'quick_gelu'))
    )
    configs = [config_file(small_config(name=name, **changes)) for name, changes in (('five', other), ('clip', clip))]
    for source, target, options, told in (
        (tmp_path / 'vit.pth', 'out', ('mmseg',), 'is a ViT without the heads of an EoMT: nothing is to be converted'),
        (tmp_path / 'vit.pth', 'there', ('mmseg',), 'is there already'),
        (lora, 'out', ('mmseg',), 'merge them first, with tools/adapter.py merge'),
        (tmp_path / 'none.pth', 'out', ('mmseg',), 'none.pth is not there'),
        (base, 'out', ('hf',), 'the number of heads cannot be inferred from weights: give its config'),
        (base, 'out', ('hf', '--config', configs[0]), 'num_layers=4, but arch asks for num_layers=5'),
        (base, 'out', ('hf', '--config', configs[1]), "mlp='quick_gelu'"),
    ):
        done = run_tool('tools/convert_checkpoint.py', source, tmp_path / target, '--to', *options, check=False)
        assert done.returncode == 1
        assert told in done.stdout.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('blocks.1.mlp.fc1.weight', lambda value: value.repeat(2, 1)),
        ('norm.bias', lambda value: value[:-1]),
        ('class_head.bias', lambda value: value[:-1]),
        ('upscale.0.conv1.weight', lambda value: value.repeat(2, 1, 1, 1)),
    ],
)
def test_a_weight_of_a_size_that_others_contradict_is_not_converted(base, tmp_path, name, change):
    checkpoint = torch.load(base, weights_only=True)
    part = 'backbone' if name.startswith('blocks') else 'decode_head'
    checkpoint['state_dict'][f'{part}.{name}'] = change(checkpoint['state_dict'][f'{part}.{name}'])
    torch.save(checkpoint, tmp_path / 'wrong.pth')
    log = convert(tmp_path / 'wrong.pth', tmp_path / 'out.bin', '--to', 'eomt', check=False)
    assert f'wrong.pth: {name} is of shape' in log
    assert not (tmp_path / 'out.bin').exists()
