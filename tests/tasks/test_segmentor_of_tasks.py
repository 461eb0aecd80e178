"""Several tasks in one pass: what each gives alone, with the trunk run once."""

import re
from collections import Counter

import pytest
import torch
from conftest import ROOT, SMALL_ARCH, relative_error
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

from mmseg_eomt.adapters import inject, lora_config, save_adapter
from mmseg_eomt.adapters.base_weights import describe_base
from mmseg_eomt.adapters.names import adapter_names, plain_name
from mmseg_eomt.tasks import load_tasks
from mmseg_eomt.tasks.sharing import check_one_encoder

pytest_plugins = ['small_tasks']


def alone(config, checkpoints: dict, images: list) -> dict[str, list]:
    """Each task's samples from a model of its own."""
    found = {}
    for name, checkpoint in checkpoints.items():
        options = {'model.decode_head.num_classes': 3} if name == 'signs' else {}
        model = init_model(config(name=name, **options), checkpoint, device='cpu')
        found[name] = inference_model(model, images)
    return found


def counted(model) -> Counter:
    """Runs of each block of the trunk from now on."""
    runs: Counter = Counter()
    blocks = {id(block): (i, block) for task in model.tasks.values() for i, block in enumerate(task.backbone.blocks)}
    for i, block in blocks.values():
        block.register_forward_hook(lambda *_, i=i: runs.update([i]))
    return runs


@pytest.mark.parametrize('mode', ['whole', 'slide', 'slide_evenly'])
def test_tasks_in_one_pass_give_bit_for_bit_what_each_gives_alone(small_config, tasks_config, checkpoints, images, mode):
    options = {'model.test_cfg.mode': mode}
    expected = alone(lambda **changes: small_config(**{**options, **changes}), checkpoints, images)
    model = load_tasks(tasks_config(options), device='cpu')

    samples = inference_model(model, images)

    for i, sample in enumerate(samples):
        assert list(sample.tasks) == list(checkpoints)
        for name, given in [*sample.tasks.items(), ('day', sample)]:
            assert torch.equal(given.seg_logits.data, expected[name][i].seg_logits.data), name
            assert torch.equal(given.pred_sem_seg.data, expected[name][i].pred_sem_seg.data)
    assert not torch.equal(samples[0].tasks['day'].seg_logits.data, samples[0].tasks['dusk'].seg_logits.data)


def test_heads_on_one_encoder_run_its_blocks_once(tasks_config, checkpoints, images):
    model = load_tasks(tasks_config(day=checkpoints['day'], signs=checkpoints['signs']), device='cpu')
    runs = counted(model)
    inference_model(model, images[:1])
    assert runs == {0: 1, 1: 1}


def test_adapters_run_the_blocks_from_their_first_on_once_each(tasks_config, images):
    model = load_tasks(tasks_config(), device='cpu')
    runs = counted(model)
    inference_model(model, images)
    assert runs == {0: 2, 1: 3}  # day, night and signs together, and dusk; then night alone too


def pmt_task(small_config, config_file, base: str, folder) -> dict[str, str]:
    """A plain mask decoder on the whole of the ViT whose last blocks are the base's joint blocks."""
    saved = torch.load(base)
    config = small_config(name='pmt', **{'model.test_cfg.mode': 'whole'})
    arch = config.model.vit.arch
    config.model.backbone = dict(type='LateralViT', arch=arch, img_size=(64, 64), out_indices=(1, 3))
    config.model.decode_head = dict(type='PMTHead', arch=arch, num_classes=19, in_index=(0, 1), num_blocks=1, num_queries=5)
    config.model.vit = dict(img_size=(64, 64))
    model = init_model(config, device='cpu')
    weights = {
        re.sub(r'^decode_head.blocks.(\d)', lambda found: f'backbone.blocks.{2 + int(found[1])}', name): value
        for name, value in saved['state_dict'].items()
        if name.startswith(('backbone.', 'decode_head.blocks.'))
    }
    model.load_state_dict(weights, strict=False)
    meta = dict(dataset_meta=saved['meta']['dataset_meta'])
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'pmt.pth')
    return dict(checkpoint=str(folder / 'pmt.pth'), config=str(config_file(config)))


def test_a_decoder_on_the_whole_vit_goes_on_where_joint_blocks_begin(
    small_config, config_file, tasks_config, checkpoints, images, tmp_path
):
    decoder = pmt_task(small_config, config_file, checkpoints['day'], tmp_path)
    model = load_tasks(tasks_config(day=checkpoints['day'], pmt=decoder), device='cpu')
    runs = counted(model)
    (sample,) = inference_model(model, images[:1])
    assert runs == {0: 1, 1: 1, 2: 1, 3: 1}
    alone = init_model(decoder['config'], decoder['checkpoint'], device='cpu')
    (expected,) = inference_model(alone, images[:1])
    assert torch.equal(sample.tasks['pmt'].seg_logits.data, expected.seg_logits.data)


def test_windows_run_the_trunk_once_each(tasks_config, checkpoints, images):
    config = tasks_config({'model.test_cfg.mode': 'slide_evenly'}, day=checkpoints['day'], signs=checkpoints['signs'])
    model = load_tasks(config, device='cpu')
    runs = counted(model)
    inference_model(model, images[:1])  # 64×128 in windows of 64×64
    assert runs == {0: 2, 1: 2}


def test_tasks_of_one_adapter_share_its_run(tasks_config, checkpoints, images):
    model = load_tasks(tasks_config(a=checkpoints['dusk'], b=checkpoints['dusk']), device='cpu')
    runs = counted(model)
    inference_model(model, images[:1])
    assert runs == {0: 1, 1: 1}


def test_the_encoders_weights_are_kept_once(tasks_config):
    model = load_tasks(tasks_config(), device='cpu')
    kept: dict[str, set[int]] = {}
    for task in model.tasks.values():
        adapters = set(adapter_names(task))
        for name, parameter in task.named_parameters():
            if name.startswith('backbone.') and name not in adapters:
                kept.setdefault(plain_name(name), set()).add(id(parameter))
    assert set(map(len, kept.values())) == {1}
    assert torch.equal(model.tasks['night'].backbone.pos_embed, model.tasks['day'].backbone.pos_embed)


def test_images_of_a_batch_may_each_have_their_own_tasks(tasks_config, checkpoints, images):
    model = load_tasks(tasks_config(), device='cpu')
    batch = torch.randn(4, 3, 64, 96)
    wanted = ['dusk', 'signs', ['night', 'day'], 'dusk']
    with torch.no_grad():
        samples = model.predict(batch, tasks=wanted)
        assert [list(sample.tasks) for sample in samples] == [['dusk'], ['signs'], ['night', 'day'], ['dusk']]
        for i, sample in enumerate(samples):
            for name, given in sample.tasks.items():
                expected = model.predict(batch[i : i + 1], tasks=name)[0].seg_logits.data
                assert given.seg_logits.data.shape == expected.shape
                assert relative_error(given.seg_logits.data, expected) < 1e-5
            assert torch.equal(sample.seg_logits.data, next(iter(sample.tasks.values())).seg_logits.data)


def test_lora_adapters_of_a_mixed_batch_run_each_block_once(tasks_config, images):
    model = load_tasks(tasks_config(), device='cpu')
    runs = counted(model)
    with torch.no_grad():
        samples = model.predict(torch.randn(3, 3, 64, 64), tasks=['dusk', 'day', 'night'])
    assert runs == {0: 1, 1: 1}
    assert [list(sample.tasks) for sample in samples] == [['dusk'], ['day'], ['night']]


def test_adapters_of_other_methods_run_apart(tasks_config, checkpoints, small_config, tmp_path):
    model = init_model(small_config(), checkpoints['day'], device='cpu')
    known = describe_base(model, dict(model.named_parameters()), checkpoints['day'])
    inject(model, lora_config(4, 8, 0.0, ['proj'], use_dora=True))
    save_adapter(model, tmp_path / 'dora', base=known, meta=dict(dataset_meta=model.dataset_meta))
    model = load_tasks(tasks_config(dora=str(tmp_path / 'dora'), dusk=checkpoints['dusk']), device='cpu')
    runs, batch = counted(model), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        samples = model.predict(batch, tasks=['dora', 'dusk'])
        assert runs == {0: 2, 1: 2}
        for i, name in enumerate(('dora', 'dusk')):
            expected = model.predict(batch[i : i + 1], tasks=name)[0].seg_logits.data
            assert torch.equal(samples[i].seg_logits.data, expected)


def test_adapters_that_change_the_base_are_tasks_of_the_base_that_they_were_started_on(
    small_config, tasks_config, checkpoints, images
):
    peft = dict(init_lora_weights='minor', layers_to_transform=[1], layers_pattern='blocks')
    options = {'model.test_cfg.mode': 'whole', 'custom_hooks.0.peft': peft, 'load_from': checkpoints['day']}
    runner = Runner.from_cfg(small_config(lora=True, max_iters=1, name='minor', **options))
    runner.train()
    minor = f'{runner.work_dir}/iter_1.pth'
    model = load_tasks(tasks_config(minor=minor, day=checkpoints['day']), device='cpu')
    runs = counted(model)
    (sample,) = inference_model(model, images[:1])
    assert runs == {0: 1, 1: 2}
    alone = init_model(small_config(**{'model.test_cfg.mode': 'whole'}), minor, device='cpu')
    (expected,) = inference_model(alone, images[:1])
    assert torch.equal(sample.tasks['minor'].seg_logits.data, expected.seg_logits.data)


def test_the_models_of_tasks_have_their_own_classes(tasks_config):
    model = load_tasks(tasks_config(), ['signs', 'dusk'], device='cpu')
    assert model.dataset_meta == model.tasks['signs'].dataset_meta
    assert model.dataset_meta['classes'] == ['none', 'sign', 'pole']
    assert len(model.tasks['dusk'].dataset_meta['classes']) == 19
    assert model.decode_head.num_classes == 3


def other_files(checkpoints: dict, folder) -> dict[str, dict]:
    """Checkpoints that do not go with the others."""
    files = {}
    for name, change in dict(
        moved=lambda saved: saved['state_dict']['backbone.blocks.1.mlp.fc1.weight'].add_(1e-3),
        unnamed=lambda saved: saved.update(meta={}),
    ).items():
        saved = torch.load(checkpoints['signs'])
        change(saved)
        torch.save(saved, folder / f'{name}.pth')
        files[name] = str(folder / f'{name}.pth')
    return files


@pytest.mark.parametrize('tasks', [['day.pth'], 'day.pth', 3, {1: 'day.pth'}])
def test_tasks_without_names_are_refused_with_how_to_write_them(tasks):
    model = dict(type='MultiTaskSegmentor', vit=dict(arch=SMALL_ARCH), tasks=tasks)
    with pytest.raises(ValueError, match=r"tasks=dict\(name='<checkpoint>', …\), got|A task is named with letters.* got 1"):
        load_tasks(Config(dict(model=model, test_dataloader=dict(dataset=dict(pipeline=[])))), device='cpu')


def test_what_is_no_task_of_this_encoder_is_refused_in_a_sentence(tasks_config, config_file, checkpoints, tmp_path):
    day, files = checkpoints['day'], other_files(checkpoints, tmp_path)
    shifted = config_file(tasks_config({'model.data_preprocessor.mean': [0.0, 0.0, 0.0]}))
    text = shifted.read_text().replace("type='MultiTaskSegmentor'", "type='EoMTSegmentor'")
    shifted.write_text(re.sub(r'tasks=dict\(.*?\),\n', '', text, flags=re.S))
    for tasks, message in (
        (
            dict(day=day, signs=files['moved']),
            "'day' and 'signs' have different encoders: 1 of .* backbone.blocks.1.mlp.fc1.weight",
        ),
        (dict(dusk=checkpoints['dusk'], signs=files['moved']), "'dusk' and 'signs' have different encoders"),
        (dict(signs=files['unnamed']), "task 'signs' does not name its classes: give the task the config"),
        (dict(day=dict(checkpoint=day, config=str(shifted))), "'day' has another data_preprocessor .* mean differs"),
        ({'../day': day}, 'named with letters'),
        ({'train': day}, "A task cannot be named 'train', .* as in 'train_task'"),
        (dict(day=dict(file=day)), "'day' is a checkpoint's path or dict"),
        (dict(day=3), "'day' is a checkpoint's path or dict"),
        (dict(day=dict(checkpoint=day, config='nowhere.py')), "config of task 'day' cannot be read.* 'nowhere.py'"),
        (dict(day=dict(checkpoint=day, config=dict(model=1))), "config of task 'day' cannot be read"),
        (
            dict(day=dict(checkpoint=day, config=str(ROOT / 'configs/_base_/lora.py'))),
            "config of task 'day', .* has no model",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_tasks(tasks_config(**tasks), device='cpu')


def test_encoders_without_a_weight_in_common_are_refused():
    vit, net = ({f'backbone.{name}.weight': torch.ones(2)} for name in ('blocks.0.norm1', 'layer1.0.conv1'))
    with pytest.raises(ValueError, match="Task 'signs' has another kind of encoder than 'day', with no weight in common"):
        check_one_encoder(dict(day=vit, dusk=vit, signs=net))


def test_unknown_tasks_and_training_are_refused(tasks_config, small_config, images):
    with pytest.raises(ValueError, match="no task 'dsuk': the tasks are day, dusk, night, signs"):
        load_tasks(tasks_config(), ['dsuk'], device='cpu')
    with pytest.raises(ValueError, match='has no tasks'):
        load_tasks(small_config(), device='cpu')
    model = load_tasks(tasks_config(), ['day', 'signs'], device='cpu')
    batch = torch.zeros(2, 3, 64, 64)
    for tasks, message in (
        ('dusk', "no task 'dusk': the tasks are day, signs"),
        (['day'], 'an entry for each of 2 images, got 1'),
        (['day', []], 'Each image needs a task'),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(batch, tasks=tasks)
    with pytest.raises(ValueError, match='train each task on its own'):
        model.loss(batch, [])


def test_init_model_and_a_runner_take_the_config_of_tasks(small_config, tasks_config, checkpoints, images):
    config = tasks_config()
    config.test_pipeline = config.test_dataloader.dataset.pipeline
    model = init_model(config, device='cpu')
    assert list(inference_model(model, images[0]).tasks) == list(checkpoints)

    runner = Runner.from_cfg(tasks_config({'model.task': 'night'}))
    found = runner.test()
    expected = Runner.from_cfg(small_config(load_from=checkpoints['day'], name='day')).test()
    assert runner.model.chosen == ('night',)
    assert found.keys() == expected.keys() and found != expected
