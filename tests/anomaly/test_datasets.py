"""Published sets of road anomalies are read from the folders they come in, with labels 0, 1 and 255."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import small_options
from made_sets import LAF, MADE, fishyscapes_laf_in_scenes, road_anomaly_21, road_obstacle_21, track, write_frame
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.datasets import CityscapesDataset
from PIL import Image
from torch.utils.data import DataLoader

from mmseg_eomt.anomaly import AnomalyDataset, find_presets
from mmseg_eomt.anomaly.data.presets import PRESETS
from mmseg_eomt.data.check import check_samples, samples_of

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='EoMTResize', size=(32, 48)),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmseg')  # as a Runner does


def labels_of(sample: dict) -> np.ndarray:
    return sample['data_samples'].gt_sem_seg.data[0].numpy()


def stored(sample: dict) -> np.ndarray:
    return np.array(Image.open(sample['data_samples'].seg_map_path))


def names_in(dataset: AnomalyDataset) -> list[str]:
    return [Path(dataset.get_data_info(i)['img_path']).stem for i in range(len(dataset))]


def test_every_preset_is_made_here():
    assert MADE.keys() == PRESETS.keys()


@pytest.mark.parametrize('preset', MADE)
def test_the_pipeline_delivers_0_1_and_255_at_the_labels_size(tmp_path, preset):
    make, num_images, values = MADE[preset]
    make(tmp_path)
    dataset = AnomalyDataset(preset=preset, data_root=str(tmp_path), pipeline=PIPELINE, test_mode=True)
    samples = list(DataLoader(dataset, batch_size=None, num_workers=0, collate_fn=None))
    assert len(samples) == num_images
    assert set().union(*(np.unique(labels_of(sample)) for sample in samples)) == values
    for sample in samples:
        original, labels = stored(sample), labels_of(sample)
        assert labels.shape == original.shape == sample['data_samples'].ori_shape
        for old, new in PRESETS[preset].label_map.items():
            assert (labels[original == old] == new).all()


@pytest.mark.parametrize('preset', MADE)
def test_data_root_may_be_the_folder_itself_and_the_check_of_all_files_passes(tmp_path, preset):
    root = MADE[preset][0](tmp_path)
    dataset = AnomalyDataset(preset=preset, data_root=str(root), pipeline=PIPELINE)
    samples = list(samples_of(dataset, 19, 255))
    assert len(samples) == MADE[preset][1]
    assert check_samples(samples) == []


@pytest.mark.parametrize('preset', MADE)
def test_a_set_is_found_below_a_folder_and_is_no_other(tmp_path, preset):
    make, num_images, _ = MADE[preset]
    root = make(tmp_path)
    (found,) = find_presets(tmp_path)
    assert found['preset'] == preset
    assert Path(found['data_root']) == root
    assert found['num_images'] == num_images + (preset == 'bdd_anomaly')  # also that without an anomaly
    assert found['num_classes'] == dict(street_hazards=13, bdd_anomaly=16).get(preset, 19)


def test_several_sets_are_found_at_once_two_levels_deep_and_not_deeper(tmp_path):
    for preset, (make, *_) in MADE.items():
        make(tmp_path / 'Validation_Dataset' if preset.startswith('course') else tmp_path)
    road_anomaly_21(tmp_path / 'a' / 'b')
    found = find_presets(tmp_path)
    assert sorted(one['preset'] for one in found) == sorted(MADE)
    for one in found:
        assert len(AnomalyDataset(one['preset'], one['data_root'])) == MADE[one['preset']][1]


def test_nothing_is_found_in_a_folder_of_something_else_or_none(scenes, tmp_path):
    assert find_presets(scenes) == []
    assert find_presets(tmp_path / 'none') == []


def test_a_link_to_a_set_is_followed(tmp_path):
    MADE['course_road_anomaly'][0](tmp_path / 'disk')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'validation').symlink_to(tmp_path / 'disk' / 'RoadAnomaly')
    (found,) = find_presets(tmp_path / 'data')
    assert found['preset'] == 'course_road_anomaly'


def test_fishyscapes_takes_its_images_from_an_unpacked_lost_and_found(tmp_path):
    dataset = AnomalyDataset('fishyscapes_laf', str(fishyscapes_laf_in_scenes(tmp_path)))
    assert names_in(dataset) == [f'{name}_leftImg8bit' for name in LAF]


def test_the_validation_frames_of_road_obstacle_21_are_those_of_the_benchmark(tmp_path):
    dataset = AnomalyDataset('road_obstacle_21', str(road_obstacle_21(tmp_path)))
    assert names_in(dataset) == ['validation_1', 'validation_18', 'validation_3']


def test_lost_and_found_is_without_people_and_bicycles(tmp_path):
    dataset = AnomalyDataset('lost_and_found', str(MADE['lost_and_found'][0](tmp_path)))
    assert [name[:2] for name in names_in(dataset)] == ['01', '13']
    assert '000006' not in names_in(dataset)[0]


def test_a_whole_lost_and_found_is_also_without_frames_that_are_ignored_everywhere(tmp_path):
    for i in range(1203):
        for folder, end in (('leftImg8bit', 'leftImg8bit'), ('gtCoarse', 'gtCoarse_labelIds')):
            path = tmp_path / folder / 'test' / '02_Street' / f'02_Street_{i:06}_000000_{end}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    names = names_in(AnomalyDataset('lost_and_found', str(tmp_path)))
    assert len(names) == 1203 - 17
    assert '02_Street_000017_000000_leftImg8bit' not in names
    next(tmp_path.glob('gtCoarse/test/*/*')).with_name('02_Street_000793_000000_gtCoarse_labelIds.png').unlink()
    with pytest.raises(ValueError, match=r'1 of 1202 images .* have no label \(02_Street_000793_000000\)') as error:
        next(tmp_path.glob('leftImg8bit/test/*/*_000000_*')).unlink()
        AnomalyDataset('lost_and_found', str(tmp_path))
    assert 'gtCoarse/test/*/{frame}_gtCoarse_labelIds.png' in str(error.value)


def test_frames_of_the_same_name_in_two_towns_are_two(tmp_path):
    root = str(MADE['street_hazards'][0](tmp_path))
    labels = [AnomalyDataset('street_hazards', root).get_data_info(i)['seg_map_path'] for i in range(3)]
    assert [Path(label).parent.name for label in labels] == ['t5', 't5', 't6']
    assert len(AnomalyDataset('street_hazards', root, frames=['t5/300'])) == 1


def test_frames_are_chosen_by_name_pattern_or_list(tmp_path):
    root = road_obstacle_21(tmp_path)
    (root / 'mine.txt').write_text('validation_3\nvalidation_19\n\n')
    dataset = AnomalyDataset('road_obstacle_21', str(root), frames=['validation_1*'])
    assert names_in(dataset) == ['validation_1', 'validation_18', 'validation_19']
    assert names_in(AnomalyDataset('road_obstacle_21', str(root), frames='mine.txt')) == ['validation_19', 'validation_3']
    assert len(AnomalyDataset('road_obstacle_21', str(root), indices=2)) == 2
    with pytest.raises(ValueError, match=r'frames has cow\*, which no frame is called; they are called curvy-street'):
        AnomalyDataset('road_obstacle_21', str(root), frames=['cow*'])
    with pytest.raises(ValueError, match=r'frames names a text file, and .*other.txt is none'):
        AnomalyDataset('road_obstacle_21', str(root), frames='other.txt')


def test_classes_stay_the_models(tmp_path):
    root = str(road_anomaly_21(tmp_path))
    dataset = AnomalyDataset('road_anomaly_21', root)
    assert dataset.metainfo['classes'] == CityscapesDataset.METAINFO['classes']
    assert dataset.metainfo['palette'] == CityscapesDataset.METAINFO['palette']
    own = AnomalyDataset('road_anomaly_21', root, metainfo=dict(classes=['road', 'rest']))
    assert (own.metainfo['classes'], len(own.metainfo['palette'])) == (['road', 'rest'], 2)
    assert len(AnomalyDataset('street_hazards', root, lazy_init=True).metainfo['classes']) == 13
    assert AnomalyDataset('bdd_anomaly', root, lazy_init=True).metainfo['classes'] == dataset.metainfo['classes'][:16]


def test_a_set_of_ones_own_is_a_preset_in_a_few_words(tmp_path):
    write_frame(tmp_path / 'in/a.bmp', tmp_path / 'out/a_mask.png', (7, 9, 255), (20, 30))
    preset = dict(images='in/{frame}.bmp', labels='out/{frame}_mask.png', label_map={'7': 1, '9': 0})
    dataset = AnomalyDataset(preset, str(tmp_path), pipeline=PIPELINE)
    assert (np.unique(labels_of(dataset[0])) == [0, 1, 255]).all()
    assert (labels_of(dataset[0])[stored(dataset[0]) == 7] == 1).all()


@pytest.mark.parametrize(
    ('preset', 'message'),
    [
        ('smiyc', r"No preset is called 'smiyc'; there are road_anomaly_21, road_obstacle_21"),
        (dict(images='a/{frame}.jpg'), 'labels, label_map is missing'),
        (dict(images='a/*.jpg', labels='b/{frame}.png', label_map={0: 0}), "need '{frame}'"),
        (dict(images='a/{frame}.jpg', labels='b/{frame}.png', label_map={0: 2}), r'label_map takes ids .* got \{0: 2\}'),
        (dict(images='a/{frame}.jpg', labels='b/{frame}.png', label_map={0: 0}, size=3), "A preset has no 'size'"),
    ],
)
def test_a_wrong_preset_is_refused(preset, message):
    with pytest.raises(ValueError, match=message):
        AnomalyDataset(preset, '.', lazy_init=True)


def test_what_the_preset_knows_is_not_asked_for(tmp_path):
    with pytest.raises(ValueError, match='takes no ann_file, img_suffix'):
        AnomalyDataset('road_anomaly_21', str(tmp_path), img_suffix='.png', ann_file='val.txt')


def test_hidden_labels_are_said_to_be_hidden(tmp_path):
    root = track(tmp_path / 'dataset_AnomalyTrack', 'jpg', [], ['airplane0000', 'bear0000', 'bear0001', 'cow0000'])
    with pytest.raises(ValueError, match=r'4 of 4 images .* have no public labels') as error:
        AnomalyDataset('road_anomaly_21', str(tmp_path))
    assert str(root.parent) in str(error.value)
    assert '(airplane0000, bear0000, bear0001 and 1 more)' in str(error.value)
    assert '--format smiyc' in str(error.value)
    assert 'evaluate on the validation* frames' in str(error.value)


def test_a_hidden_frame_that_is_asked_for_is_named(tmp_path):
    root = road_anomaly_21(tmp_path)
    with pytest.raises(ValueError, match=r'2 of 5 images .* have no public labels \(airplane0000, bear0000\)'):
        AnomalyDataset('road_anomaly_21', str(root), frames=['*'])


def test_a_missing_label_is_named(tmp_path):
    root = MADE['road_anomaly'][0](tmp_path)
    shutil.rmtree(root / 'frames' / 'animals02_b.labels')
    with pytest.raises(ValueError, match=r'1 of 2 images of road_anomaly .* have no label \(animals02_b\): it should be'):
        AnomalyDataset('road_anomaly', str(root))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda root: None, r'is no folder'),
        (lambda root: root.mkdir(), r'holds no labelled images of road_anomaly, .*frames/{frame}.jpg.*check data_root'),
        (road_anomaly_21, r"what is there fits preset='road_anomaly_21' with data_root='.*dataset_AnomalyTrack'"),
        (MADE['course_road_anomaly'][0], r"what is there fits preset='course_road_anomaly' with data_root='.*RoadAnomaly'"),
    ],
    ids=['none', 'empty', 'track', 'course'],
)
def test_a_missing_empty_or_other_folder_is_told(tmp_path, make, message):
    make(tmp_path / 'data')
    with pytest.raises(ValueError, match=message) as error:
        AnomalyDataset('road_anomaly', str(tmp_path / 'data'))
    assert str(tmp_path / 'data') in str(error.value)
    with pytest.raises(ValueError, match='Set data_root'):
        AnomalyDataset('road_anomaly')


def test_a_folder_whose_images_fit_and_whose_labels_do_not_is_told_too(tmp_path):
    """The images of the course's RoadAnomaly look like those of RoadAnomaly21's track."""
    root = MADE['course_road_anomaly'][0](tmp_path)
    with pytest.raises(ValueError, match="what is there fits preset='course_road_anomaly'"):
        AnomalyDataset('road_anomaly_21', str(root))


def runner_of(scenes: Path, work_dir: Path, **dataset) -> Runner:
    """Evaluation of a small model, which is not trained, on an :class:`AnomalyDataset`."""
    config = Config.fromfile('configs/eomt_tiny_cityscapes.py')
    config.merge_from_dict(small_options(scenes, work_dir, 1))
    config.test_dataloader.dataset = dict(type='AnomalyDataset', test_mode=True, pipeline=PIPELINE, **dataset)
    config.test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    return Runner.from_cfg(config)


def test_ids_that_a_preset_does_not_know_stop_the_test_and_name_the_file(scenes, tmp_path):
    root = road_anomaly_21(tmp_path)
    label = root / 'labels_masks' / 'validation0001_labels_semantic.png'
    Image.fromarray(np.full((32, 48), 7, np.uint8)).save(label)  # a class of Cityscapes, and none of anomalies
    runner = runner_of(scenes, tmp_path / 'run', preset='road_anomaly_21', data_root=str(root))
    message = rf'1 of 3 images .*\n *{re.escape(str(label))}: id 7 is none of those that the dataset knows \(0, 1, 255\)'
    with pytest.raises(ValueError, match=message):
        runner.test()


def test_a_run_says_what_is_missing_before_it_begins(scenes, tmp_path):
    with pytest.raises(ValueError, match='holds no labelled images of street_hazards'):
        runner_of(scenes, tmp_path / 'run', preset='street_hazards', data_root=str(tmp_path)).test()


def test_an_id_that_would_pass_for_a_label_does_not(tmp_path):
    """0 is no id of StreetHazards: it becomes none of 0, 1 and 255 also where nobody checks the files."""
    root = MADE['street_hazards'][0](tmp_path)
    Image.fromarray(np.zeros((24, 40), np.uint8)).save(root / 'test/annotations/test/t5/300.png')
    assert (labels_of(AnomalyDataset('street_hazards', str(root), pipeline=PIPELINE)[0]) == 254).all()
    lenient = AnomalyDataset('street_hazards', str(root), label_map={0: 255, 14: 1, **dict.fromkeys(range(1, 14), 0)})
    assert lenient.known_ids == (*range(15), 255)
