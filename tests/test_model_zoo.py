"""Every line of the model zoo: its string can be read, and its checkpoint in the published size fits the model it names."""

import re
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from conftest import ROOT
from layouts import (
    Sizes,
    dinov2_release,
    hf_dinov2,
    hf_dinov3,
    hf_dinov3_7b,
    public_decoder,
    public_eomt,
    public_eomt_dinov3,
    timm_dinov3_without_biases,
    timm_vit,
)
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from mmseg_eomt.models.arch import ARCHS, ViTArch, get_arch
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.checkpoint import parse_checkpoint, parse_delta
from mmseg_eomt.weights.fit import Target, fit, part_of_vit
from mmseg_eomt.weights.fit_pmt import fit_decoder
from mmseg_eomt.weights.sources import as_hub_name, parse_hub_name, split_sum

PAGE = (ROOT / 'docs' / 'model_zoo.md').read_text(encoding='utf-8')
ROWS = [
    [cell.strip(' `') for cell in line.strip('|').split('|')] for line in PAGE.splitlines() if re.match(r'\| .*://', line)
]
PMTS = [row for row in ROWS if row[0].startswith('PMT')]
SEMANTIC = [row for row in ROWS if row[3].startswith('configs/') and row not in PMTS]
STARTS = [row for row in ROWS if row[4] in '345']
VITS = [row for row in ROWS if len(row) == 5]


class OfOneNumber(Sizes):
    """Tensors of any size that take no memory."""

    def draw(self, **shapes):
        return {name: torch.ones(1).expand(shape) for name, shape in shapes.items()}


def published(arch: str, joint: int, side: int, classes: int, queries: int) -> dict:
    """The authors' checkpoint of a model."""
    vit = get_arch(arch)
    sizes = OfOneNumber(0, dims=vit.embed_dims, heads=vit.num_heads, layers=vit.num_layers, hidden=vit.mlp_hidden_dims)
    sizes.gated, sizes.patch, sizes.grid, sizes.joint = vit.mlp == 'swiglu', 16, side // 16, joint
    sizes.classes, sizes.queries = classes, queries
    return (public_eomt_dinov3 if vit.rope_theta else public_eomt)(sizes)


def test_the_page_has_all_its_tables():
    assert (len(SEMANTIC), len(STARTS), len(VITS), len(PMTS)) == (4, 18, 19, 7)
    assert len({row[-2] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_every_string_is_of_a_form_that_is_read(row):
    for part in split_sum(row[-2]):
        assert part is None or part.startswith('https://dl.fbaipublicfiles.com/') or parse_hub_name(part)[1:] == (None, None)
    if 'tue-mps/eomt-' not in row[-2] and 'tue-mps' in row[-2]:
        assert ('_dinov3' in row[-2]) == ('+hf://facebook/dinov3-vit' in row[-2])


@pytest.mark.parametrize('row', SEMANTIC, ids=lambda row: row[-2])
def test_a_published_semantic_model_fits_its_config_and_nothing_is_adapted(row):
    register_all_modules()
    config = Config.fromfile(ROOT / row[3])
    with torch.device('meta'):
        model = MODELS.build(config.model)
    head, vit = model.decode_head, model.backbone
    side = int(row[0].split()[-1]) if row[0][-1].isdigit() else 512
    content = published(config.model.vit.arch, 4, side, dict(Cityscapes=19, ADE20K=150)[row[1]], 100)
    target = Target('model', vit.arch, part_of_vit(vit) | part_of_vit(head), vit.grid_size, head.num_joint_blocks)

    _, report = fit(parse_checkpoint(content, row[-2]), target, training=False)

    assert (report.adapted, report.new) == ([], [])
    assert row[1] == dict(CityscapesDataset='Cityscapes', ADE20KDataset='ADE20K')[config.test_dataloader.dataset.type]


@pytest.mark.parametrize('row', STARTS, ids=lambda row: row[-2])
def test_a_published_panoptic_model_fits_the_arch_and_split_that_it_is_listed_with(row):
    arch, joint, side = row[3], int(row[4]), int(row[0].split()[-1])
    with torch.device('meta'):
        vit = EoMTViT(arch, side, num_joint_blocks=joint)
        head = EoMTHead(19, arch, num_joint_blocks=joint)
    classes = 80 if 'instance' in row[1] else 150 if 'ADE20K' in row[1] else 133
    content = published(arch, joint, side, classes, 200)
    target = Target('model', vit.arch, part_of_vit(vit) | part_of_vit(head), vit.grid_size, joint)

    _, report = fit(parse_checkpoint(content, row[-2]), target, training=True)

    assert report.adapted == ['queries 200 → 100, the first are kept']
    assert report.new == [f'class_head ({classes} classes in the checkpoint, 19 here)']


@pytest.mark.parametrize('row', PMTS, ids=lambda row: row[-2])
def test_a_published_decoder_fits_the_sizes_that_it_is_listed_with(row):
    register_all_modules()
    semantic = row[3].startswith('configs/')
    config = Config.fromfile(ROOT / (row[3] if semantic else 'configs/eomt_pmt_dinov3-l_ade20k_512.py'))
    if not semantic:
        config.merge_from_dict({'model.vit.arch': row[3], 'model.decode_head.mlp_hidden_dims': int(row[4])})
    with torch.device('meta'):
        model = MODELS.build(config.model)
    head, vit = model.decode_head, model.decode_head.arch
    sizes = OfOneNumber(0, dims=vit.embed_dims, heads=vit.num_heads, hidden={384: 384, 768: 768}.get(vit.embed_dims, 1024))
    sizes.joint, sizes.levels, sizes.queries = 6, 4, 100 if semantic else 200
    sizes.classes = 150 if semantic else 80 if 'instance' in row[1] else 133

    filled = fit_decoder(parse_delta(public_decoder(sizes), row[-2]), head, training=not semantic)

    assert filled.keys() == head.state_dict().keys()
    assert model.backbone.out_indices == ((5, 11, 17, 23) if '-L' in row[0] else (2, 5, 8, 11))
    assert f'vit{row[0][4].lower()}16' in split_sum(row[-2])[1]


def published_vit(row: list[str], arch: ViTArch) -> dict:
    """A ViT's file in the size and layout of its publisher."""
    name, string, registers = row[0], row[3], int(row[2])
    sizes = OfOneNumber(0, dims=arch.embed_dims, heads=arch.num_heads, layers=2, hidden=arch.mlp_hidden_dims)
    sizes.gated, sizes.registers = arch.mlp == 'swiglu', registers
    sizes.patch, sizes.grid, sizes.scales = (14, 37, True) if 'DINOv2' in name else (16, 14, 'DeiT' in name)
    if 'timm' in string:
        return (timm_dinov3_without_biases if 'dinov3' in string else timm_vit)(sizes)
    if 'DINOv2' in name:
        return (hf_dinov2 if 'facebook/' in string else dinov2_release)(sizes)
    return (hf_dinov3_7b if '7b' in string else hf_dinov3)(sizes)


@pytest.mark.parametrize('row', [row for row in VITS if 'a dict' not in row[1]], ids=lambda row: row[0])
def test_a_vit_fits_the_arch_and_registers_that_it_is_listed_with(row):
    arch = replace(ARCHS[row[1]], num_layers=2)  # of all blocks alike
    with torch.device('meta'):
        vit = EoMTViT(asdict(arch), 512, num_register_tokens=int(row[2]), num_joint_blocks=0)
    target = Target('model', vit.arch, part_of_vit(vit), vit.grid_size, 0)

    _, report = fit(parse_checkpoint(published_vit(row, arch), row[3]), target, training=True)

    expected = ['patches 14 → 16 pixels', 'positions 37×37 → 32×32'] if 'DINOv2' in row[0] else []
    expected += ['positions 14×14 → 32×32'] if row[1].startswith('vit_') or 'DeiT' in row[0] else []
    expected += ['2 biases of queries and values that the file omits are zero'] if 'DINOv3 L of timm' in row[0] else []
    assert (report.adapted, report.new) == (expected, [])


def test_the_index_says_what_the_page_says():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text(encoding='utf-8'))
    semantic = [row for row in ROWS if row[3].startswith('configs/')]
    listed = {row[3]: row for row in semantic}
    assert {model['Config'] for model in index['Models']} == set(listed)
    names = {collection['Name'] for collection in index['Collections']}
    for model in index['Models']:
        row = listed[model['Config']]
        assert model['In Collection'] in names
        assert (ROOT / model['Config']).is_file() and model['Name'] in model['Config']
        assert model['Results']['Metrics']['mIoU'] == float(row[2].split()[0])
        assert model['Results']['Dataset'] == model['Metadata']['Training Data'] == row[1]
        assert as_hub_name(model['Weights']).startswith(
            tuple(split_sum(r[-2])[0] for r in semantic if r[3] == model['Config'])
        )
