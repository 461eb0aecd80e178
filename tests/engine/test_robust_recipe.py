"""The robust recipe: where, how fast and how steadily its adapters learn is what SoMA's published config defines."""

import copy
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, small_recipe
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import HOOKS, MODELS, PARAM_SCHEDULERS
from mmseg.utils import register_all_modules
from torch import nn

from mmseg_eomt.adapters import load_adapter, save_adapter
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.adapters.separate_qkv import separate_qkv
from mmseg_eomt.engine import LoRAHook

GTA5, CITYSCAPES = 'eomt_lora_robust_gta5_512.py', 'eomt_lora_robust_cityscapes_1024.py'
ITERS = 40000


def segmentor(config: Config, num_layers: int = 24, **arch) -> nn.Module:
    """The recipe's model with layers of 16 numbers."""
    register_all_modules()
    arch = dict(embed_dims=16, num_layers=num_layers, num_heads=1, **arch)
    config.model.vit.update(arch=arch, pretrained=None, num_joint_blocks=4, img_size=(32, 32))
    config.model.decode_head.num_queries = 2
    return MODELS.build(config.model)


def adapted(model: nn.Module, hook: LoRAHook) -> list[str]:
    inject(model, hook.config_for(model), hook.trainable_modules)
    return list(tuner_layers(model))


def built(config: Config, kind: str) -> Hook:
    return HOOKS.build(next(hook for hook in config.custom_hooks if hook.type == kind))


@pytest.fixture(scope='module')
def soma() -> tuple[nn.Module, Config]:
    config = small_recipe(GTA5, 32)
    model = segmentor(config)
    adapted(model, built(config, 'LoRAHook'))
    return model, config


def test_adapters_are_in_all_linear_layers_of_blocks_8_to_23_and_their_biases_train(soma):
    model, _ = soma
    blocks = [*(f'backbone.blocks.{i}' for i in range(8, 20)), *(f'decode_head.blocks.{i}' for i in range(4))]
    layers = [f'{block}.{layer}' for block in blocks for layer in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')]
    assert list(tuner_layers(model)) == layers
    own = {name for name, p in model.named_parameters() if p.requires_grad and 'lora_' not in name and '.blocks.' in name}
    assert own == {f'{layer}.base_layer.bias' for layer in layers}
    assert {(layer.r['default'], layer.scaling['default']) for layer in tuner_layers(model).values()} == {(16, 1.0)}


def rates_and_decays(config: Config, model: nn.Module, steps: list[int]) -> dict[int, dict[str, tuple[float, float]]]:
    """Learning rate and weight decay of each parameter at steps of the recipe's 40,000."""
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    schedules = [
        PARAM_SCHEDULERS.build({'end': ITERS, **s}, default_args=dict(optimizer=wrapper)) for s in config.param_scheduler
    ]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    wrapper.step()  # schedules expect one before their own; without gradients nothing moves
    for step in range(max(steps) + 1):
        if step in steps:
            groups = wrapper.optimizer.param_groups
            found[step] = {names[id(p)]: (g['lr'], g['weight_decay']) for g in groups for p in g['params']}
        for schedule in schedules:
            schedule.step()
    return found


def annealed(step: int) -> float:
    return 1e-5 + (0.05 - 1e-5) * (1 + math.cos(math.pi * step / ITERS)) / 2


def test_rates_and_decays_are_the_published_ones_at_every_part_of_the_run(soma):
    model, config = soma
    assert config.train_cfg.max_iters == ITERS
    assert config.optim_wrapper.optimizer.type == 'AdamW'
    seen = rates_and_decays(config, model, [0, 1, 1000, 12000, 20000, 39999])
    for step, given in seen.items():
        rate = 1e-4 * (1 - step / (ITERS - 1)) ** 0.9  # 0 at the last iteration, as mmengine counts
        assert set(given) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, (lr, decay) in given.items():
            assert lr == pytest.approx(rate * (0.5 if '.blocks.' in name else 1.0), rel=1e-6), (step, name)
            without = 'query_embed' in name or '.norm.' in name
            assert decay == pytest.approx(0 if without else annealed(step), rel=1e-6), (step, name)


def test_the_recipe_for_cityscapes_warms_up_and_averages_later_as_published(soma):
    model, config = soma[0], Config.fromfile(ROOT / 'configs' / CITYSCAPES)
    given = rates_and_decays(config, model, [0, 750, 1500, 20000])
    warm = {0: 0.01, 750: 0.01 + 0.99 * 750 / 1499, 1500: 1.0, 20000: (1 - 18500 / 38499) ** 0.9}
    for step, factor in warm.items():
        lr, decay = given[step]['decode_head.class_head.weight']
        assert lr == pytest.approx(1e-4 * factor, rel=1e-6), step
        assert decay == pytest.approx(annealed(step), rel=1e-6)
    assert built(config, 'EMAHook').begin_iter == 16000


def test_weight_decay_is_annealed_beside_eomts_two_warm_ups_too(soma):
    model, config = soma[0], copy.deepcopy(soma[1])
    config.param_scheduler[0] = dict(type='TwoWarmupsPolyLR', warmup_steps=(500, 1000), by_epoch=False)
    given = rates_and_decays(config, model, [250, 1000])
    assert given[250]['decode_head.class_head.weight'] == pytest.approx((0.5e-4, annealed(250)))
    assert given[250]['decode_head.blocks.0.attn.qkv.base_layer.bias'] == pytest.approx((0.0, annealed(250)))
    assert given[1000]['decode_head.blocks.0.attn.qkv.base_layer.bias'] == pytest.approx((0.25e-4, annealed(1000)))


def test_the_average_starts_at_iteration_12000_with_the_published_momentum(soma):
    model, config = soma
    hook = built(config, 'EMAHook')
    assert (hook.begin_iter, hook.enabled_by_epoch) == (12000, False)
    assert MODELS.build(hook.ema_cfg, default_args=dict(model=model)).momentum == 0.0002


@pytest.mark.parametrize(('name', 'side'), [(GTA5, 512), (CITYSCAPES, 1024)])
def test_images_are_scaled_cropped_and_windowed_as_published(name, side):
    config = Config.fromfile(ROOT / 'configs' / name)
    steps = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    assert list(steps)[2:-1] == ['RandomChoiceResize', 'RandomCrop', 'RandomFlip', 'PhotoMetricDistortion']
    assert steps['RandomChoiceResize'].scales == [int(side * x * 0.1) for x in range(5, 21)]
    assert steps['RandomChoiceResize'].max_size == 4 * side
    assert tuple(steps['RandomCrop'].crop_size) == tuple(config.model.vit.img_size) == (side, side)
    assert config.train_dataloader.batch_size == 4
    assert config.model.test_cfg.stride == ((341, 341) if side == 512 else (683, 683))


class _Keep(Hook):
    """What is trained, after each iteration."""

    def __init__(self) -> None:
        self.after: list[dict] = []

    def after_train_iter(self, runner: Runner, *_, **__) -> None:
        self.after.append({n: p.detach().clone() for n, p in runner.model.named_parameters() if p.requires_grad})


@pytest.fixture(scope='module')
def run(scenes, tmp_path_factory):
    """Train the recipe for six iterations on data in GTA5's layout; its average begins at the third."""
    root = tmp_path_factory.mktemp('robust')
    for kind, end in (('images', ''), ('labels', '_labelTrainIds')):
        (root / 'gta' / kind).mkdir(parents=True)
        of = 'gtFine' if end else 'leftImg8bit'
        for i, file in enumerate(sorted((scenes / of / 'train').rglob('*_labelTrainIds.png' if end else '*.png'))):
            shutil.copy(file, root / 'gta' / kind / f'{i:05d}{end}.png')

    def start(**changes) -> tuple[Runner, _Keep]:
        config = small_recipe(GTA5, 64)
        config.custom_hooks[0].update(blocks=(1, -1), r=2, lora_alpha=2, save_adapter=True)
        config.custom_hooks[2].update(begin_iter=3, momentum=0.1)
        config.train_dataloader.dataset.data_root = str(root / 'gta')
        config.train_dataloader.dataset.pipeline[2].update(scales=[48, 64, 96])
        config.model.test_cfg.stride = (64, 64)
        for split in ('val', 'test'):
            config[f'{split}_dataloader'].dataset.update(data_root=str(scenes))
            config[f'{split}_dataloader'].dataset.pipeline[1].scale = (128, 64)
        options = {
            'work_dir': str(root / 'run'),
            'randomness': dict(seed=0),
            'train_dataloader.batch_size': 2,
            'train_cfg': dict(max_iters=6, val_interval=6),
            'default_hooks.checkpoint': dict(interval=2, max_keep_ckpts=-1, save_best=None),
            'default_hooks.logger.interval': 1,
        }
        config.merge_from_dict({**options, **changes})
        runner, keep = Runner.from_cfg(config), _Keep()
        runner.register_hook(keep)
        runner.train()
        return runner, keep

    runner, keep = start()
    return start, runner, keep, torch.load(f'{runner.work_dir}/iter_6.pth', weights_only=True)


def average_of(runner: Runner) -> nn.Module:
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model


def test_a_run_averages_from_its_iteration_on_and_saves_the_average(run):
    _, runner, keep, saved = run
    for name, average in keep.after[2].items():  # the first that is averaged
        for later in keep.after[3:]:
            average = 0.9 * average + 0.1 * later[name]
        assert torch.allclose(saved['state_dict'][name], average, atol=1e-7), name
        assert torch.equal(saved['ema_state_dict'][f'module.{name}'], keep.after[-1][name])
    adapter = next(name for name in keep.after[0] if 'lora_B' in name)
    assert not torch.equal(saved['state_dict'][adapter], keep.after[-1][adapter])
    early = torch.load(f'{runner.work_dir}/iter_2.pth', weights_only=True)['state_dict']
    assert all(torch.equal(early[name], value) for name, value in keep.after[1].items())


def logged(runner: Runner, name: str) -> list[float]:
    return list(runner.message_hub.get_scalar(f'train/{name}').data[0])


def log_of(runner: Runner) -> str:
    return Path(runner.log_dir, f'{runner.timestamp}.log').read_text(encoding='utf-8')


def test_a_run_logs_its_weight_decay_and_its_blocks(run):
    _, runner, *_ = run
    expected = [1e-5 + (0.05 - 1e-5) * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert logged(runner, 'weight_decay') == pytest.approx(expected)
    said = log_of(runner)
    assert 'Of blocks 0 to 3 of the ViT, 1 to 3 are adapted.' in said
    assert 'weight_decay: 0.05' in said


@pytest.mark.parametrize('iteration', [2, 4])
def test_a_run_resumed_before_or_after_the_average_begins_ends_the_same(run, iteration):
    """A weight decay schedule that the config has changed goes on as it was, which is said."""
    start, whole, *_ = run
    changes = {'param_scheduler.1.eta_min_ratio': 0.5} if iteration == 4 else {}
    path = f'{whole.work_dir}/iter_{iteration}.pth'
    resumed, _ = start(resume=True, load_from=path, experiment_name=f'resumed_{iteration}', **changes)

    for one, other in ((whole.model, resumed.model), (average_of(whole), average_of(resumed))):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    states = [runner.optim_wrapper.optimizer.state_dict()['state'] for runner in (whole, resumed)]
    assert all(torch.equal(value, states[1][i][name]) for i, state in states[0].items() for name, value in state.items())
    for name in ('lr', 'weight_decay'):
        assert logged(resumed, name) == logged(whole, name)
    told = 'weight decay schedule goes on as in the run to resume, with eta_min_ratio=0.0002'
    assert (told in log_of(resumed)) == bool(changes)


def test_a_checkpoint_brings_its_blocks_along(run):
    _, runner, keep, saved = run
    plain = copy.deepcopy(runner.cfg)
    plain.custom_hooks = []
    loaded = init_model(plain, f'{runner.work_dir}/iter_6.pth', device='cpu')
    assert list(tuner_layers(loaded)) == list(tuner_layers(runner.model))
    assert all(torch.equal(loaded.state_dict()[name], saved['state_dict'][name]) for name in keep.after[0])


@pytest.mark.parametrize('qkv_bias', ['qkv', 'qv'])
@pytest.mark.parametrize('split', [False, True])
def test_an_adapter_of_some_blocks_is_read_by_plain_peft_and_read_back(split, qkv_bias, tmp_path):
    from peft import PeftModel

    model = segmentor(small_recipe(GTA5, 32), num_layers=6, qkv_bias=qkv_bias).eval()
    for name, parameter in model.named_parameters():
        if name.endswith('qkv.bias'):
            nn.init.normal_(parameter)
    plain, again = copy.deepcopy(model), copy.deepcopy(model)
    fields = dict(init_lora_weights='minor', bias='lora_only')
    layers = adapted(model, LoRAHook(r=2, blocks=(1, 3), split_qkv=split, peft=fields))
    blocks = ['backbone.blocks.1', 'decode_head.blocks.0', 'decode_head.blocks.1']
    assert layers == [f'{block}.attn.{layer}' for block in blocks for layer in ('qkv', 'proj')]
    keys = slice(16, 32) if qkv_bias == 'qv' else slice(0)  # DINOv3's have no bias: it is zero, and never trained
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
            parameter.data[keys] *= not name.endswith('qkv.base_layer.bias')
    save_adapter(model, tmp_path / 'adapter')

    PeftModel.from_pretrained(separate_qkv(plain) if split else plain, str(tmp_path / 'adapter'))
    load_adapter(again, tmp_path / 'adapter')

    assert len(tuner_layers(plain)) == len(blocks) * (4 if split else 2)
    assert list(tuner_layers(again)) == layers
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for expected, *given in zip(model(image), plain(image), again(image)):
            for one in given:
                torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('blocks', [(2, 6), (3, 2), (-7, 2), (2,), (1.0, 2), '1-2', 3])
def test_blocks_that_the_vit_does_not_have_are_refused(blocks):
    model = segmentor(small_recipe(GTA5, 32), num_layers=6)
    with pytest.raises(ValueError, match=r'first and the last block to adapt, of 0 to 5 here .* as in \(2, -1\); got'):
        LoRAHook(blocks=blocks).config_for(model)


def test_blocks_of_another_backbone_are_refused():
    with pytest.raises(
        ValueError, match='are those of an EoMTViT, and the model has a Linear: name its layers in exclude_modules'
    ):
        LoRAHook(blocks=(0, 1)).config_for(nn.Linear(2, 2))


def test_a_run_is_not_resumed_with_other_blocks(run):
    start, whole, *_ = run
    path = f'{whole.work_dir}/iter_4.pth'
    with pytest.raises(RuntimeError, match='set the model, target_modules, blocks and trainable_modules as in training'):
        start(resume=True, load_from=path, experiment_name='other_blocks', **{'custom_hooks.0.blocks': (2, -1)})
