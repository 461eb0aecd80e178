"""Sources of outliers: what each gives, and what it refuses."""

import json
import pickle

import cv2
import numpy as np
import pytest
from mmseg.utils import register_all_modules
from outlier_files import GREEN, compressed, disc, runs_of, write_ade20k, write_coco, write_cutouts, write_masked

from mmseg_eomt.anomaly.outliers.class_names import known_names
from mmseg_eomt.anomaly.outliers.coco import decode_counts, decode_segmentation
from mmseg_eomt.anomaly.outliers.compositing import Cutout
from mmseg_eomt.anomaly.outliers.sources import OUTLIER_SOURCES

# pycocotools 2.0.11 on the mask of test_compressed_run_lengths…: two discs, a ladder and a line
PYCOCOTOOLS = (
    '`1h0P4_O_L4M2O0O2O000000000001N101N3LZ4KZK0000000O010000000O010000000O010000000O010000000O010000000O010000000'
    'O010000000O010000000O010000000O010000000O'
)


@pytest.fixture(autouse=True)
def toolbox() -> None:
    register_all_modules()


def draws(source: object, number: int = 30, path: str | None = None) -> list[Cutout]:
    rng = np.random.default_rng(0)
    return [source.draw(rng, path) for _ in range(number)]


def assert_green(cutouts: list[Cutout], tolerance: int = 0) -> None:
    """Each cut-out shows the object and nothing of its ground."""
    for cutout in cutouts:
        assert cutout.image.shape[:2] == cutout.alpha.shape
        inside = cutout.image[cutout.alpha > 127].astype(int)
        assert len(inside) and np.abs(np.median(inside, axis=0) - GREEN).max() <= tolerance


def test_a_folder_of_cut_outs_is_searched_for_png_and_webp(tmp_path):
    write_cutouts(tmp_path / 'deep' / 'er')
    source = OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(tmp_path)))
    assert len(source) == 2
    cutouts = draws(source)
    assert {cutout.name for cutout in cutouts} == {'disc', 'box'}
    assert_green(cutouts)


def test_cut_outs_without_alpha_or_without_anything_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r'There is no folder .*nowhere'):
        OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(tmp_path / 'nowhere')))
    with pytest.raises(ValueError, match=r'holds no \.png or \.webp'):
        OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(tmp_path)))
    cv2.imwrite(str(tmp_path / 'plain.png'), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r'plain\.png: a cut-out needs an alpha channel'):
        OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(tmp_path)))
    (tmp_path / 'plain.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'plain\.png: the cut-out cannot be read'):
        OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(tmp_path)))
    cv2.imwrite(str(tmp_path / 'plain.png'), np.zeros((9, 9, 4), np.uint8))
    source = OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(tmp_path)))
    with pytest.raises(ValueError, match=r'plain\.png: the cut-out is transparent everywhere'):
        draws(source, 1)


def masked(folder, **options):
    names = dict(images=str(folder / 'images'), masks=str(folder / 'masks'))
    return OUTLIER_SOURCES.build(dict(type='MaskedImages', **{'min_area': 100, **names, **options}))


def test_each_region_of_a_mask_is_an_outlier_and_255_is_ignored(tmp_path):
    source = masked(write_masked(tmp_path))
    cutouts = draws(source)
    assert_green(cutouts)
    assert {cutout.alpha.shape for cutout in cutouts} == {(23, 23)}  # the discs apart, cut to their size
    labels = cv2.imread(str(tmp_path / 'masks' / 'a.png'), cv2.IMREAD_GRAYSCALE)
    labels[labels == 7] = 1
    cv2.imwrite(str(tmp_path / 'masks' / 'a.png'), labels)
    assert_green(draws(masked(tmp_path, ids=[255])))


def test_masks_of_0_and_255_need_to_be_told_what_255_is(tmp_path):
    write_masked(tmp_path, values=(255,))
    with pytest.raises(ValueError, match=r'give ids=\[255\] if it marks outliers'):
        masked(tmp_path)
    assert_green(draws(masked(tmp_path, ids=[255])))


def test_masks_that_do_not_go_with_their_images_are_refused(tmp_path):
    write_masked(tmp_path / 'a')
    with pytest.raises(ValueError, match=r'no image of .*images has a mask of its name in .*, such as a\.png'):
        masked(tmp_path / 'a', masks=write_cutouts(tmp_path / 'c').as_posix())
    for name in ('a', 'b'):
        cv2.imwrite(str(tmp_path / 'a' / 'images' / f'{name}.png'), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match=r'the mask has the size \(60, 80\)'):
        draws(masked(tmp_path / 'a'), 1)


def test_where_no_region_is_large_enough_nothing_is_drawn(tmp_path):
    assert draws(masked(write_masked(tmp_path), min_area=1000), 1) == [None]


def coco(folder, **options):
    images, annotations = write_coco(folder)
    return OUTLIER_SOURCES.build(
        dict(type='CocoInstances', images=str(images), annotations=str(annotations), min_area=500, **options)
    )


def test_coco_gives_objects_of_polygons_and_run_lengths_without_traffic_and_crowds(tmp_path):
    source = coco(tmp_path)
    assert len(source) == 3
    assert source.classes == ('zebra', 'kite')
    cutouts = draws(source)
    assert {cutout.name for cutout in cutouts} == {'zebra', 'kite'}
    assert {cutout.alpha.shape for cutout in cutouts} == {(35, 35)}
    assert {round((cutout.alpha > 0).mean(), 1) for cutout in cutouts} == {0.8}  # discs
    assert_green(cutouts)


def test_what_is_excluded_from_coco_is_the_users_choice(tmp_path):
    assert coco(tmp_path / 'all', exclude=()).classes == ('car', 'zebra', 'kite')
    assert coco(tmp_path / 'some', exclude=['KITE', 'automobile']).classes == ('zebra',)


def test_a_part_of_cocos_images_is_enough_and_none_is_not(tmp_path):
    images, annotations = write_coco(tmp_path)
    (images / '000000000001.png').unlink()
    config = dict(type='CocoInstances', images=str(images), annotations=str(annotations), min_area=500)
    assert len(OUTLIER_SOURCES.build(config)) == 1
    (images / '000000000002.png').unlink()
    with pytest.raises(ValueError, match=r'no object .* is left: 0 of its 2 images are in .*, and car is excluded'):
        OUTLIER_SOURCES.build(config)


@pytest.mark.parametrize(
    ('content', 'said'),
    [(None, 'cannot be read'), ('{', 'is no JSON file'), ('{"images": []}', 'has no list of annotations')],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path, content, said):
    images, annotations = write_coco(tmp_path)
    annotations.unlink()
    if content:
        annotations.write_text(content)
    with pytest.raises(ValueError, match=said):
        OUTLIER_SOURCES.build(dict(type='CocoInstances', images=str(images), annotations=str(annotations)))


def test_an_image_of_another_size_than_its_annotations_is_refused(tmp_path):
    source = coco(tmp_path)
    for path in (tmp_path / 'train2017').iterdir():
        cv2.imwrite(str(path), np.zeros((80, 60, 3), np.uint8))
    with pytest.raises(ValueError, match='the image is 60×80 pixels, and 80×60 in the annotations'):
        draws(source, 1)


def test_compressed_run_lengths_are_those_of_pycocotools():
    rows, columns = np.mgrid[:24, :40]
    mask = disc(24, 40, 8, (11, 15)) | ((columns > 28) & (rows % 5 < 2)) | (columns == 2)
    assert compressed(runs_of(mask)) == PYCOCOTOOLS
    assert (decode_segmentation(dict(size=[24, 40], counts=PYCOCOTOOLS), 24, 40) == mask).all()
    assert decode_counts('\\l8dj2P_Y3') == [9100, 2900, 108000]  # several characters a number


def test_run_lengths_that_do_not_fill_the_mask_are_refused():
    with pytest.raises(ValueError, match='Run lengths of 10 pixels do not fill a mask of 4×3'):
        decode_segmentation(dict(size=[3, 4], counts=[4, 6]), 3, 4)


def test_polygons_of_one_object_may_overlap():
    square = [2, 2, 8, 2, 8, 8, 2, 8]
    assert decode_segmentation([square, square], 12, 12).sum() == 49


def test_regions_of_a_dataset_of_the_toolbox_by_class_name(tmp_path):
    source = OUTLIER_SOURCES.build(
        dict(type='DatasetRegions', dataset=write_ade20k(tmp_path), classes=['chair'], min_area=100)
    )
    cutouts = draws(source, 3)
    assert {cutout.name for cutout in cutouts} == {'chair'}
    assert_green(cutouts, tolerance=8)  # JPEG


def test_a_dataset_without_the_class_or_without_files_is_refused(tmp_path):
    config = write_ade20k(tmp_path)
    with pytest.raises(ValueError, match=r"names of classes of ADE20KDataset, got \['dragon'\]; it has wall, building"):
        OUTLIER_SOURCES.build(dict(type='DatasetRegions', dataset=config, classes=['chair', 'dragon']))
    for prefix in (dict(img_path='nowhere'), dict(img_path='annotations')):
        wrong = dict(config, data_prefix=dict(prefix, seg_map_path='annotations/training'))
        with pytest.raises(ValueError, match=r'DatasetRegions: ADE20KDataset finds no images'):
            OUTLIER_SOURCES.build(dict(type='DatasetRegions', dataset=wrong, classes=['chair']))


def images_in(folder, number: int = 3) -> list[str]:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(number):
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    return [str(folder / f'{i}.png') for i in range(number)]


def test_patches_need_no_data_but_the_images_beside_that_of_the_scene(tmp_path):
    paths = images_in(tmp_path / 'train')
    source = OUTLIER_SOURCES.build(dict(type='TrainingPatches'))
    cutouts = draws(source, 60, paths[0])
    assert {cutout.name for cutout in cutouts} == {'blob', 'polygon', 'box'}
    assert len({cutout.image.tobytes() for cutout in cutouts}) == 60
    for cutout in cutouts:
        assert cutout.alpha.max() == 255 and (cutout.alpha > 127).mean() > 0.02
    with pytest.raises(ValueError, match=r'finds no folder around the image s3://x/a.png: give images=FOLDER'):
        draws(source, 1, 's3://x/a.png')


def test_patches_come_from_a_folder_or_a_dataset_too(tmp_path):
    paths = images_in(tmp_path / 'train')
    source = OUTLIER_SOURCES.build(dict(type='TrainingPatches', images=str(tmp_path)))
    assert len(source) == 3 and draws(source, 1)[0].image.shape == (256, 256, 3)
    source = OUTLIER_SOURCES.build(dict(type='TrainingPatches', dataset=write_ade20k(tmp_path / 'ade')))
    assert len(source) == 1 and draws(source, 1, paths[0])[0].image.shape == (256, 256, 3)
    with pytest.raises(ValueError, match='images or dataset, not both'):
        OUTLIER_SOURCES.build(dict(type='TrainingPatches', images=str(tmp_path), dataset={}))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='there is no image in'):
        OUTLIER_SOURCES.build(dict(type='TrainingPatches', images=str(tmp_path / 'empty')))


@pytest.mark.parametrize('kind', ['cutouts', 'masked', 'coco', 'regions', 'patches'])
def test_the_same_random_numbers_give_the_same_outliers_in_another_process_too(tmp_path, kind):
    if kind == 'cutouts':
        source = OUTLIER_SOURCES.build(dict(type='CutoutFolder', folder=str(write_cutouts(tmp_path))))
    elif kind == 'masked':
        source = masked(write_masked(tmp_path))
    elif kind == 'coco':
        source = coco(tmp_path)
    elif kind == 'regions':
        source = OUTLIER_SOURCES.build(
            dict(type='DatasetRegions', dataset=write_ade20k(tmp_path), classes=['chair'], min_area=100)
        )
    else:
        images_in(tmp_path / 'train')
        source = OUTLIER_SOURCES.build(dict(type='TrainingPatches', images=str(tmp_path)))
    draws(source, 3)  # leaves nothing behind
    other = pickle.loads(pickle.dumps(source))
    for one, two in zip(draws(source, 10), draws(other, 10)):
        assert one.name == two.name and (one.image == two.image).all() and (one.alpha == two.alpha).all()


def test_the_index_of_coco_is_small(tmp_path):
    """As many bytes as the JSON of what is kept, in one array: nothing of the rest stays."""
    source = coco(tmp_path)
    assert len(pickle.dumps(source)) < len(json.dumps(json.loads((tmp_path / 'instances_train2017.json').read_text())))


def test_names_compare_across_datasets():
    cityscapes = ('road', 'person', 'traffic sign', 'motorcycle', 'car')
    names = ['Motorbike', 'pedestrian', 'stop_sign', 'car_(automobile)', 'VAN', 'carpet', 'motor home', 'zebra']
    assert known_names(names, cityscapes) == names[:5]
