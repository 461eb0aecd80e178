"""PMT's published recipe: learning rates, annealing, what is trained, and a run from start to evaluation."""

import copy
import math

import pytest
import torch
from conftest import ROOT, SMALL_ARCH, make_config
from layouts import Sizes, public_decoder
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import PARAM_SCHEDULERS
from torch import nn

from mmseg_eomt.engine.schedules import MaskAnnealingHook
from mmseg_eomt.models import LateralViT, PMTHead

RECIPE = 'configs/eomt_pmt_dinov3-l_ade20k_512.py'
PUBLISHED = dict(start=[0, 5384, 7403, 9422, 11442, 13461], end=[3000, 8749, 10769, 12788, 14807, 16826])
COCO = dict(start=[0, 23651, 32520, 41389, 50258, 59128], end=[38433, 47302, 56171, 65040, 73910])
SIZES = dict(dims=32, heads=2, hidden=32, joint=2)
DECODER = dict(type='PMTHead', num_blocks=2, mlp_hidden_dims=32)


def published_rate(step: int, base: float, warmup: int, total: int, least: float) -> float:
    """The formula of the public implementation."""
    if step < warmup:
        return base * step / warmup
    return least + 0.5 * (base - least) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize('accumulated', [1, 4])
def test_every_optimizer_step_has_the_published_learning_rate(accumulated):
    layer = nn.Linear(1, 1)
    wrapper = build_optim_wrapper(layer, dict(optimizer=dict(type='AdamW', lr=2e-4), accumulative_counts=accumulated))
    cosine = dict(type='WarmupCosineLR', warmup_steps=6, min_lr=1e-9, by_epoch=False, end=20 * accumulated)
    scheduler = PARAM_SCHEDULERS.build(dict(cosine, optimizer=wrapper))
    for step in range(20):
        for _ in range(accumulated):
            assert wrapper.get_lr()['lr'][0] == pytest.approx(published_rate(step, 2e-4, 6, 20, 1e-9), rel=1e-12), step
            scheduler.step()


def test_a_warm_up_that_takes_the_whole_run_is_refused():
    wrapper = build_optim_wrapper(nn.Linear(1, 1), dict(optimizer=dict(type='SGD', lr=1)))
    with pytest.raises(ValueError, match=r'warm-ups of WarmupCosineLR take 6000 steps, but it has 5000'):
        PARAM_SCHEDULERS.build(dict(type='WarmupCosineLR', optimizer=wrapper, by_epoch=False, end=5000))


class RunOf:
    """What MaskAnnealingHook reads of a Runner before training."""

    iter = 0

    def __init__(self, model: nn.Module, max_iters: int) -> None:
        self.model = model
        self.max_iters = max_iters


def test_masks_are_annealed_at_the_published_steps_of_any_run():
    hook = next(h for h in Config.fromfile(ROOT / RECIPE).custom_hooks if h.type == 'MaskAnnealingHook')
    arch = dict(embed_dims=8, num_layers=2, num_heads=1)
    annealing = MaskAnnealingHook(hook.start_iters, hook.end_iters)
    for steps, starts, ends in ((20192, *PUBLISHED.values()), (88692, *COCO.values())):
        annealing.before_train(RunOf(PMTHead(3, arch), steps))
        assert [start for start, _ in annealing._spans] == starts
        assert [end for _, end in annealing._spans][-len(ends) :] == ends


def test_the_recipe_has_the_published_numbers():
    config = Config.fromfile(ROOT / RECIPE)
    optim = config.optim_wrapper
    assert (optim.optimizer.lr, optim.optimizer.weight_decay, optim.clip_grad.max_norm) == (2e-4, 0.05, 0.01)
    assert config.train_dataloader.batch_size * optim.accumulative_counts == 16
    assert config.train_cfg.max_iters == 16 * 1262  # epochs
    head = config.model.decode_head
    assert (head.num_classes, head.num_blocks, head.mlp_hidden_dims) == (150, 6, 1024)
    assert 'num_joint_blocks' not in config.model.vit


def pmt_config(scenes, work_dir, **changes) -> Config:
    """The suite's small config with PMT and its recipe."""
    recipe = Config.fromfile(ROOT / 'configs' / '_base_' / 'pmt.py')
    config = make_config(scenes, work_dir, max_iters=4)
    config.model.backbone = dict(type='LateralViT')
    config.model.decode_head = dict(config.model.decode_head, **DECODER)
    config.model.vit.pop('num_joint_blocks', None)
    config.param_scheduler = [dict(recipe.param_scheduler[0], warmup_steps=1)]
    config.custom_hooks = [
        recipe.custom_hooks[0],
        dict(type='MaskAnnealingHook', start_iters=[0.0] * 2, end_iters=[0.5] * 2),
    ]
    config.merge_from_dict(changes)
    return config


@pytest.fixture(scope='module')
def encoder(tmp_path_factory) -> str:
    """A file of a ViT."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp('vit') / 'vit.pth'
    torch.save(LateralViT(SMALL_ARCH, 64).state_dict(), path)
    return str(path)


@pytest.fixture(scope='module')
def trained(scenes, encoder, tmp_path_factory) -> tuple[Runner, Config]:
    """A run on a frozen encoder."""
    config = pmt_config(scenes, tmp_path_factory.mktemp('pmt'), **{'model.vit.pretrained': encoder})
    runner = Runner.from_cfg(config)
    runner.train()
    return runner, config


def test_a_run_trains_the_decoder_and_leaves_the_encoder(trained, encoder):
    runner, _ = trained
    vit = torch.load(encoder, weights_only=True)
    assert all(torch.equal(value, vit[name]) for name, value in runner.model.backbone.state_dict().items())
    assert runner.model.decode_head.laterals[0].norm.num_batches_tracked == 4
    assert runner.model.decode_head.mask_probs == (0.0, 0.0)


def test_no_graph_of_the_encoder_is_kept_and_its_mode_is_of_no_effect(trained):
    backbone, image = trained[0].model.backbone, torch.randn(1, 3, 64, 64)
    training, evaluating = backbone.train()(image), backbone.eval()(image)
    for one, other in zip(training, evaluating):
        assert not one[0].requires_grad
        assert all(torch.equal(*pair) for pair in zip(one, other))


def test_the_checkpoint_holds_the_decoder_and_predicts_on_the_noted_encoder(trained, tmp_path):
    runner, config = trained
    path, plain = f'{runner.work_dir}/iter_4.pth', copy.deepcopy(config)
    assert all(name.startswith('decode_head.') for name in torch.load(path, weights_only=True)['state_dict'])
    plain.model.vit.pretrained = None  # the checkpoint notes where the encoder is

    model = init_model(plain, path, device='cpu')

    image, meta = torch.randn(1, 3, 64, 64), [dict(img_shape=(64, 64))]
    with torch.no_grad():
        expected = runner.model.eval().encode_decode(image, meta)
        assert torch.equal(model.encode_decode(image, meta), expected)
    test = copy.deepcopy(config)
    test.merge_from_dict({'load_from': path, 'work_dir': str(tmp_path), 'experiment_name': 'pmt_test'})
    scores = Runner.from_cfg(test).test()
    assert scores['mIoU'] == pytest.approx(runner.message_hub.get_scalar('val/mIoU').current())


def test_a_new_run_starts_from_a_published_decoder_with_other_classes_and_queries(scenes, encoder, tmp_path, capfd):
    torch.save(public_decoder(Sizes(0, **SIZES, classes=7, queries=5)), tmp_path / 'decoder.bin')
    changes = {'model.vit.pretrained': encoder, 'load_from': str(tmp_path / 'decoder.bin'), 'train_cfg.max_iters': 2}
    config = pmt_config(scenes, tmp_path / 'run', **changes)
    config.model.decode_head.in_index = (0, 1, 2)
    runner = Runner.from_cfg(config)
    runner.train()

    log = ''.join(capfd.readouterr())
    assert 'queries 5 → 12, they are repeated' in log
    assert 'class_head (7 classes in the checkpoint, 19 here)' in log
    vit = torch.load(encoder, weights_only=True)
    assert all(torch.equal(value, vit[name]) for name, value in runner.model.backbone.state_dict().items())
    model = init_model(config, f'{runner.work_dir}/iter_2.pth', device='cpu')
    assert all(torch.equal(value, runner.model.state_dict()[name]) for name, value in model.state_dict().items())
