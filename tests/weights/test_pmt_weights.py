"""Public PMT checkpoints: read by string, put on their ViT, fitted, refused, and written back."""

import pytest
import torch
from conftest import reference, relative_error
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmseg.apis import init_model
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from mmseg_eomt.commands import convert_checkpoint
from mmseg_eomt.weights.checkpoint import parse_checkpoint

DINOV3 = dict(rope_theta=100.0, rope_rescale=2.0, norm_eps=1e-5, qkv_bias='qv')
ENCODER = 'network.encoder.'


def settings(given: dict, **changes) -> dict:
    """A model of the reference's sizes."""
    arch = dict(embed_dims=given['embed_dims'], num_layers=given['depth'], num_heads=given['num_heads'])
    arch |= DINOV3 if given['family'] == 'dinov3' else {}
    head = dict(num_classes=given['num_classes'], num_queries=given['num_queries'], num_blocks=given['num_blocks'])
    head |= dict(mlp_hidden_dims=given['hidden_dims'], in_index=range(len(given['interaction_indices'])), num_points=64)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return dict(
        type='EoMTSegmentor',
        vit=dict(arch=arch, img_size=given['img_size'], pretrained=changes.pop('pretrained', None)),
        data_preprocessor=dict(type='SegDataPreProcessor', mean=mean, std=std),
        backbone=dict(type='LateralViT', out_indices=given['interaction_indices']),
        decode_head=dict(head, type='PMTHead', **changes),
        test_cfg=dict(mode='whole'),
    )


def config_of(given: dict, **changes) -> Config:
    return Config(dict(model=settings(given, **changes), default_scope='mmseg', test_pipeline=[]))


def vit_file(weights: dict, family: str) -> dict:
    """The encoder as timm has it, or as Hugging Face has a DINOv3."""
    names = {'patch_embed.': 'embeddings.', 'blocks.': 'layer.'} if family == 'dinov3' else {}
    vit = {name.removeprefix(f'{ENCODER}backbone.'): v for name, v in weights.items() if f'{ENCODER}backbone.' in name}
    for theirs, others in names.items():
        vit = {name.replace(theirs, others): value for name, value in vit.items()}
    return vit


@pytest.fixture(params=['dinov2', 'dinov3'])
def public(request, tmp_path) -> dict:
    """The reference, with files of all of it, of its decoder as it is published, and of its ViT."""
    data = reference(f'pmt_{request.param}_tiny.pt')
    weights = data['state_dict']
    files = dict(
        whole=weights,
        decoder={'state_dict': {name: value for name, value in weights.items() if not name.startswith(ENCODER)}},
        vit=vit_file(weights, request.param),
    )
    for name, content in files.items():
        torch.save(content, tmp_path / f'{name}.bin')
        data[name] = str(tmp_path / f'{name}.bin')
    return data


def assert_predicts(model, data: dict) -> None:
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=list(data['image'])))['inputs']
        masks, classes = model.decode_head(model.backbone(inputs))
    assert relative_error(masks[-1], data['eval']['mask_logits'][-1]) < 1e-4
    assert relative_error(classes[-1], data['eval']['class_logits'][-1]) < 1e-4


def test_a_published_decoder_predicts_on_its_vit_from_one_string(public):
    for source in (public['whole'], f'{public["decoder"]}+{public["vit"]}'):
        assert_predicts(init_model(config_of(public['config']), source, device='cpu'), public)


def test_a_decoder_alone_does_not_predict_and_the_message_names_both_files(public):
    with pytest.raises(ValueError, match=r'without the ViT.* name both, as .*decoder\.bin\+hf://facebook/dinov3-vit'):
        init_model(config_of(public['config']), public['decoder'], device='cpu')
    with pytest.raises(ValueError, match=r'whole.bin .* is a PMT, not the ViT'):
        CheckpointLoader.load_checkpoint(f'{public["decoder"]}+{public["whole"]}')


def test_init_cfg_reads_the_decoder_for_the_head_and_the_vit_for_the_backbone(public):
    register_all_modules()
    init_cfg = dict(type='Pretrained', checkpoint=public['decoder'])
    model = MODELS.build(settings(public['config'], pretrained=public['vit'], init_cfg=init_cfg))
    model.init_weights()
    assert_predicts(model.eval(), public)


def test_a_whole_pmt_is_a_vit_for_other_models(public):
    register_all_modules()
    vit = settings(public['config'])['vit']
    model = MODELS.build(
        dict(
            type='EoMTViT',
            init_cfg=dict(type='Pretrained', checkpoint=public['whole']),
            **{**{name: vit[name] for name in ('arch', 'img_size')}, 'num_joint_blocks': 0},
        )
    )
    model.init_weights()
    name = 'blocks.5.mlp.fc2.weight'
    expected = parse_checkpoint(public['state_dict'], 'it').weights[name]
    assert torch.equal(model.state_dict()[name], expected)


@pytest.mark.parametrize('content', ['public', 'own'])
def test_a_model_without_its_head_does_not_predict_with_a_pmt(public, tmp_path, content):
    config = config_of(public['config'])
    if content == 'own':
        torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), tmp_path / 'own.pth')
    config.model.backbone = dict(type='EoMTViT')
    config.model.decode_head = dict(type='EoMTHead', num_classes=3)
    config.model.vit.num_joint_blocks = 2
    with pytest.raises(ValueError, match=r'is a PMT, and EoMTSegmentor has no PMTHead: predict with the config'):
        init_model(config, public['whole'] if content == 'public' else str(tmp_path / 'own.pth'), device='cpu')


@pytest.mark.parametrize('content', ['decoder', 'whole'])
def test_names_are_written_back_bit_for_bit(public, tmp_path, in_process, content):
    log = in_process(convert_checkpoint.main, public[content], tmp_path / 'ours.pth', '--to', 'mmseg')
    in_process(convert_checkpoint.main, tmp_path / 'ours.pth', tmp_path / 'back.bin', '--to', 'pmt')

    assert ('decoder of a public PMT' if content == 'decoder' else 'public PMT (DINOv') in log
    given, back = (torch.load(path, weights_only=True) for path in (public[content], tmp_path / 'back.bin'))
    given = given.get('state_dict', given)
    assert given.keys() == back.keys()
    assert all(torch.equal(value, back[name]) for name, value in given.items())
    if content == 'whole':
        assert_predicts(init_model(config_of(public['config']), str(tmp_path / 'ours.pth'), device='cpu'), public)


def test_a_pmt_is_not_written_as_another_model(public, tmp_path, in_process):
    for kind in ('eomt', 'hf'):
        out = in_process(convert_checkpoint.main, public['whole'], tmp_path / 'x', '--to', kind, check=False)
        assert 'is a PMT, not an EoMT: write it with --to pmt' in out


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_blocks=2), 'has num_blocks=[34], and PMTHead 2'),
        (dict(mlp_hidden_dims=32), 'has mlp_hidden_dims=(96|128), and PMTHead 32'),
        (dict(in_index=(0, 1)), 'has length of in_index=3, and PMTHead 2'),
        (dict(num_classes=3), r'has \d classes, the model 3: to predict'),
        (dict(num_queries=3), r'has \d\d queries, the model 3: to predict'),
    ],
)
def test_a_checkpoint_of_another_size_is_refused_with_the_name_of_the_size(public, changes, message):
    config = config_of(public['config'])
    config.model.decode_head.update(changes)
    with pytest.raises(ValueError, match=message):
        init_model(config, public['whole'], device='cpu')


def test_a_decoder_with_a_missing_weight_is_refused(public, tmp_path):
    weights = {name: value for name, value in public['state_dict'].items() if 'bn.1.running_var' not in name}
    torch.save(weights, tmp_path / 'lacks.bin')
    with pytest.raises(ValueError, match=r'the decoder of a PMT lacks 1 weights: laterals.1.norm.running_var'):
        init_model(config_of(public['config']), str(tmp_path / 'lacks.bin'), device='cpu')


def test_a_vit_alone_is_no_checkpoint_of_the_whole_model(public):
    with pytest.raises(ValueError, match=r'vit.bin has no decoder of a PMT.* model.vit.pretrained'):
        init_model(config_of(public['config']), public['vit'], device='cpu')
