"""Rein: the paper's formulas, a start that changes nothing, and a run that keeps only what it has trained."""

import copy
import functools
import math
import shutil

import pytest
import torch
from conftest import SMALL_ARCH, make_config
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import MODELS
from packaging.version import Version

from mmseg_eomt.commands.export import main
from mmseg_eomt.engine import EoMTOptimWrapperConstructor
from mmseg_eomt.models import EoMTHead, EoMTViT, ReinHead, ReinViT
from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.rein import LinkedRein, Rein
from mmseg_eomt.weights.checkpoint import parse_checkpoint
from mmseg_eomt.weights.convert import to_eomt, to_hugging_face, to_mmseg

IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
META = [dict(img_shape=(64, 64), ori_shape=(64, 64))]
SIZES = dict(arch=SMALL_ARCH, num_joint_blocks=2)
TRAINED = ['backbone.rein', *(f'decode_head.{part}' for part in ('joint_rein', 'query_embed', 'class_head', 'upscale'))]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """With values in place of the zeros that leave a model as it is."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def small(rein: bool = True) -> torch.nn.Sequential:
    vit = ReinViT(**SIZES, img_size=64, num_tokens=12, rank=4) if rein else EoMTViT(**SIZES, img_size=64)
    head = dict(**SIZES, num_classes=5, num_queries=12, num_points=32)
    return torch.nn.Sequential(vit, ReinHead(**head, rank=4, link_dims=8) if rein else EoMTHead(**head))


@torch.no_grad()
def test_refinement_is_the_papers_formula_patch_by_patch():
    rein = randomised(Rein(num_blocks=3, embed_dims=8, num_tokens=5, rank=2))
    x = torch.randn(2, 7, 8)  # 3 prefix tokens, 4 patches
    refined = rein(1, x, 4)

    a, b = rein.tokens_a[1], rein.tokens_b[1]
    tokens = torch.stack([sum(a[j, k] * b[k] for k in range(2)) for j in range(5)])
    w_t, b_t, w_f, b_f = (p for layer in (rein.token_projection, rein.feature_projection) for p in layer.parameters())
    assert torch.equal(refined[:, :3], x[:, :3])
    for image in range(2):
        for i in range(3, 7):
            f = x[image, i]
            weights = [math.exp(f.dot(token) / math.sqrt(8)) for token in tokens]
            change = sum(weights[j] / sum(weights) * (w_t @ tokens[j] + b_t) for j in range(1, 5))
            assert torch.allclose(refined[image, i], f + w_f @ (change + f) + b_f, atol=1e-5)


@torch.no_grad()
def test_queries_are_linked_to_the_tokens_of_all_blocks():
    rein = randomised(LinkedRein(2, 8, 5, 2, link_dims=3))
    earlier = torch.randn(4, 5, 8)
    offset = rein.query_offset(earlier)

    tokens = [*earlier, *rein.tokens()]
    linked = [rein.query_projection(token) for token in tokens]
    for query in range(5):
        rows = torch.stack([layer[query] for layer in linked])
        mixed = torch.cat((rows.max(0).values, rows.sum(0) / 6, linked[5][query]))
        assert torch.allclose(offset[query], rein.query_mix.weight @ mixed + rein.query_mix.bias, atol=1e-5)


def test_the_number_of_parameters_is_the_papers():
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device('meta'):
        backbone, joint = Rein(20, 1024, 100, 16), LinkedRein(4, 1024, 100, 16, link_dims=256)
        whole = Rein(24, 1024, 100, 16)
        to_queries_of_256 = (torch.nn.Linear(1024, 256), torch.nn.Linear(3 * 256, 256))  # Mask2Former's
    assert count(whole) == 24 * 16 * (100 + 1024) + 2 * (1024**2 + 1024)
    assert count(whole) + sum(map(count, to_queries_of_256)) == 2_990_080  # table 3: 2.99 M
    # ours: a second pair of shared layers for the joint blocks, and queries as wide as the ViT
    assert count(backbone) == 2_458_880
    assert count(joint) == 3_220_992


def test_a_model_starts_as_it_was_without_rein():
    plain, rein = small(rein=False).eval(), small().eval()
    for part, own in zip(rein, plain):
        absent = part.load_state_dict(own.state_dict(), strict=False)
        assert not absent.unexpected_keys
        assert all('rein.' in name for name in absent.missing_keys)
    for given, expected in zip(rein(IMAGE), plain(IMAGE)):
        assert torch.equal(given[0], expected[0])


def test_gradients_reach_the_tokens_of_all_blocks_after_the_first_step():
    model = small()
    parameters = [p for name, p in model.named_parameters() if 'rein.' in name]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        masks, classes = model(IMAGE)
        sum(out.square().mean() for out in (*masks, *classes)).backward()
        optimizer.step()

    for rein in (model[0].rein, model[1].joint_rein):
        for tokens in (rein.tokens_a, rein.tokens_b):
            assert (tokens.grad.flatten(1).abs().amax(1) > 0).all()
        assert all(p.grad.abs().max() > 0 for p in rein.parameters())


def test_activation_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model = randomised(small())
    grads = []
    for with_cp in (False, True):
        model[0].with_cp = model[1].with_cp = with_cp
        model.zero_grad()
        torch.manual_seed(1)  # masks of attention are drawn
        masks, _ = model(IMAGE)
        masks[-1].square().mean().backward()
        grads.append(model[0].rein.tokens_a.grad.clone())
    assert torch.equal(*grads)


def test_a_backbone_with_rein_goes_with_other_heads():
    vit, head = small()[0], small(rein=False)[1]
    assert head(vit(IMAGE))[0][-1].shape[1] == 12
    maps = ReinViT(arch=SMALL_ARCH, img_size=64, num_joint_blocks=0, num_tokens=4, rank=2)(IMAGE)
    assert [out.shape for out in maps] == [(1, 32, 4, 4)]


def test_mistakes_are_refused_with_what_to_set():
    with pytest.raises(ValueError, match='set it as the type of the backbone'):
        small()[1](small(rein=False)[0](IMAGE))
    with pytest.raises(ValueError, match=r'has 7: set num_tokens=12 there'):
        small()[1](ReinViT(**SIZES, img_size=64, num_tokens=7)(IMAGE))
    with pytest.raises(ValueError, match=r'a rank from 1 to 32, .* got 1 tokens of rank 4'):
        ReinViT(**SIZES, num_tokens=1, rank=4)


def rein_config(scenes, folder, max_iters=2, **changes):
    config = make_config(scenes, folder, lora=True, max_iters=max_iters, **changes)
    config.model.backbone = dict(type='ReinViT', num_tokens=12, rank=4)
    config.model.decode_head.update(type='ReinHead', rank=4, link_dims=8)
    config.custom_hooks = [dict(type='LoRAHook', target_modules=[], trainable_modules=TRAINED)]
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    return config


@pytest.fixture(scope='module')
def trained(scenes, base, tmp_path_factory):
    """A run of two iterations on a plain EoMT's checkpoint."""
    runner = Runner.from_cfg(rein_config(scenes, tmp_path_factory.mktemp('runs') / 'rein', load_from=base))
    runner.train()
    return runner


@torch.no_grad()
def scores(model: torch.nn.Module) -> torch.Tensor:
    return model.eval().encode_decode(IMAGE, META)


def test_a_slim_checkpoint_has_rein_alone_and_predicts_what_was_trained(trained, base, tmp_path, scenes):
    checkpoint = torch.load(f'{trained.work_dir}/iter_2.pth', weights_only=True)
    kept = {'.'.join(name.split('.')[:2]) for name in checkpoint['state_dict']}
    assert kept - {'decode_head.attn_mask_probs', 'backbone.pos_grid'} == {*TRAINED}
    start = torch.load(base, weights_only=True)['state_dict']
    for name, parameter in trained.model.named_parameters():
        if not name.startswith(tuple(TRAINED)):
            assert torch.equal(parameter, start[name])

    loaded = init_model(rein_config(scenes, tmp_path), f'{trained.work_dir}/iter_2.pth', device='cpu')
    assert torch.equal(scores(loaded), scores(trained.model))


def test_rein_learns_at_the_rate_of_new_parts():
    model = torch.nn.ModuleDict(dict(zip(('backbone', 'decode_head'), small())))
    constructor = EoMTOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1e-3)), dict(layer_decay=0.5))
    groups = constructor(model).param_groups
    (new,) = (group for group in groups if group.get('part') == 'new')
    assert new['lr'] == 1e-3
    reins = [p for name, p in model.named_parameters() if 'rein.' in name]
    assert {id(p) for p in reins} < {id(p) for p in new['params']}


def test_a_run_resumes_to_the_same_weights(trained, scenes, base, tmp_path):
    whole = Runner.from_cfg(rein_config(scenes, tmp_path / 'whole', 3, load_from=base))
    whole.train()
    shutil.copytree(trained.work_dir, tmp_path / 'resumed')
    resumed = Runner.from_cfg(rein_config(scenes, tmp_path / 'resumed', 3, resume=True))  # without load_from
    resumed.train()
    for (name, given), expected in zip(resumed.model.named_parameters(), whole.model.parameters()):
        assert torch.allclose(given, expected, atol=1e-6), name


def test_checkpoints_with_another_rein_or_none_are_refused_where_they_do_not_fit(trained, base, tmp_path, scenes):
    config = rein_config(scenes, tmp_path)
    with pytest.raises(ValueError, match=r'rein\.tokens_a: checkpoint absent'):
        init_model(config, base, device='cpu')  # predicts, so that all has to be there
    full = copy.deepcopy(trained.model).state_dict()
    torch.save(dict(state_dict=full, meta={}), tmp_path / 'full.pth')
    config.model.backbone.rank = 3
    config.load_from = str(tmp_path / 'full.pth')
    with pytest.raises(ValueError, match=r'rein\.tokens_a: checkpoint \(2, 12, 4\), model \(2, 12, 3\)'):
        Runner.from_cfg(config).train()
    plain = make_config(scenes, tmp_path)
    with pytest.raises(ValueError, match=r'rein\.tokens_a: checkpoint \(2, 12, 4\), model absent'):
        init_model(plain, str(tmp_path / 'full.pth'), device='cpu')


@pytest.mark.slow
@pytest.mark.skipif(Version(torch.__version__) < Version('2.7'), reason='exporting needs PyTorch 2.7, as its refusal says')
def test_a_trained_model_is_exported_to_onnx(trained, scenes, tmp_path, config_file, in_process):
    config = config_file(rein_config(scenes, tmp_path / 'rein'))
    out = tmp_path / 'rein.onnx'
    in_process(main, config, f'{trained.work_dir}/iter_2.pth', out, '--size', 64, 64, '--batch', 1)  # compares the scores
    assert out.exists()


def test_a_converted_checkpoint_keeps_rein_and_a_public_format_refuses_it(trained):
    state = trained.model.state_dict()
    found = parse_checkpoint(dict(state_dict=state), 'rein.pth')
    own = to_mmseg(found, {})['state_dict']
    assert own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())
    for convert in (to_eomt, functools.partial(to_hugging_face, arch=get_arch(SMALL_ARCH))):
        with pytest.raises(ValueError, match='joint_rein'):
            convert(found)


def test_it_is_registered():
    assert MODELS.get('ReinViT') is ReinViT
    assert MODELS.get('ReinHead') is ReinHead
