"""The commands, code and figures of docs/weights.md hold as they stand; a Hub of small files stands for the real one."""

import re
import shlex

import pytest
import torch
from conftest import ROOT, run_tool
from layouts import Sizes, hf_dinov3, public_eomt, public_eomt_dinov3
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from server import serve
from test_model_zoo import published

from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.checkpoint import parse_checkpoint
from mmseg_eomt.weights.fit import Target, fit, part_of_vit
from mmseg_eomt.weights.formats import EOMT, HF_EOMT

PAGE = (ROOT / 'docs' / 'weights.md').read_text(encoding='utf-8')
SMALL = dict(dims=32, heads=2, layers=4, hidden=128, gated=False, patch=16, grid=4, joint=2, queries=12, classes=19)
ROTARY = dict(embed_dims=32, num_layers=4, num_heads=2, rope_theta=100.0, qkv_bias='qv', norm_eps=1e-5)


@pytest.mark.slow
def test_the_commands_run(small_config, config_file, base, tmp_path):
    hub = tmp_path / 'hub'
    delta = public_eomt_dinov3(Sizes(0, **SMALL))
    contents = {
        'tue-mps/coco_panoptic_eomt_large_640': public_eomt(Sizes(0, **{**SMALL, 'classes': 133, 'queries': 20})),
        'tue-mps/cityscapes_semantic_eomt_large_1024': public_eomt(Sizes(1, **SMALL)),
        'tue-mps/ade_semantic_eomt_large_512_dinov3': {
            name: 0.01 * value if 'backbone' in name else value for name, value in delta.items()
        },
        'facebook/dinov3-vitl16-pretrain-lvd1689m': hf_dinov3(Sizes(2, **SMALL)),
    }
    for repo, content in contents.items():
        (hub / repo).mkdir(parents=True)
        torch.save(content, hub / repo / 'pytorch_model.bin')
    rotary = {f'model.{part}.arch': dict(_delete_=True, **ROTARY) for part in ('backbone', 'decode_head')}
    files = {
        'configs/eomt_lora_cityscapes.py': config_file(small_config(lora=True, max_iters=1, name='lora')),
        'configs/eomt_dinov3-l_ade20k_512.py': config_file(small_config(name='rotary', **rotary)),
        'configs/eomt_demo.py': config_file(small_config(name='demo')),
        'work_dirs/eomt_demo/iter_600.pth': base,
        ' eomt.bin': f' {tmp_path}/eomt.bin',
        ' eomt_hf': f' {tmp_path}/eomt_hf',
        ' ours.pth': f' {tmp_path}/ours.pth',
    }
    logs = []
    with serve(hub, hub=True) as (address, _):
        env = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / 'hf'), HF_HUB_DISABLE_XET='1')
        for block in re.findall(r'```bash\n(.*?)```', PAGE, re.S):
            for line in block.replace('\\\n', ' ').strip().splitlines():
                for shown, file in files.items():
                    line = line.replace(shown, str(file))
                logs.append(run_tool(*shlex.split(line)[1:], **env).stdout)

    assert len(logs) == 5
    assert 'queries 20 → 12, the first are kept' in logs[0] and 'class_head (133 classes' in logs[0]
    assert 'mIoU' in logs[1]
    assert {path.name for path in tmp_path.glob('*eomt*')} == {'eomt.bin', 'eomt_hf'} and (tmp_path / 'ours.pth').is_file()


def test_the_archs_that_are_shown_build():
    block, _ = re.findall(r'```python\n(.*?)```', PAGE, re.S)
    values: dict = {}
    exec(block, {}, values)
    (siglip,) = re.findall(r'`(dict\(embed_dims=768.*?\))`', PAGE, re.S)
    for arch in (values['clip_base'], eval(siglip)):
        with torch.device('meta'):
            vit = EoMTViT(arch, 224, num_register_tokens=0, num_joint_blocks=0)
        assert ('cls_token' in vit.state_dict()) == arch.get('class_token', True)


def test_the_config_that_is_shown_builds(tmp_path):
    register_all_modules()
    _, block = re.findall(r'```python\n(.*?)```', PAGE, re.S)
    (tmp_path / 'mae.py').write_text(block.replace("'eomt_lora", f"'{ROOT}/configs/eomt_lora"))
    config = Config.fromfile(tmp_path / 'mae.py')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    sources = [part.init_cfg['checkpoint'] for part in (model.backbone, model.decode_head)]
    assert sources == 2 * ['hf://timm/vit_large_patch16_224.mae']
    assert 'reg_token' not in model.backbone.state_dict() and model.backbone.arch == model.decode_head.arch


def test_the_table_that_is_shown_is_the_logs():
    register_all_modules()
    config = Config.fromfile(ROOT / 'configs' / 'eomt_lora_cityscapes.py')
    with torch.device('meta'):
        model = MODELS.build(config.model)
    vit, head = model.backbone, model.decode_head
    content = HF_EOMT.write(EOMT.read(published('large', 4, 640, 133, 200)))
    target = Target('EncoderDecoder', vit.arch, part_of_vit(vit) | part_of_vit(head), vit.grid_size, 4)
    _, report = fit(parse_checkpoint(content, 'hf://tue-mps/coco_panoptic_eomt_large_640'), target, training=True)

    shown = re.search(r'^    EncoderDecoder: .*?\n\n', PAGE, re.S | re.M).group()
    assert shown.strip() == re.sub('^', '    ', str(report), flags=re.M).strip()
