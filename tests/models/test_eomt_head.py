"""The head's outputs, masks, losses and predictions inside the stock segmentor."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_ARCH, relative_error
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_eomt.engine.checks import check_split
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.layers import Attention


def small_segmentor(test_cfg: dict | None = None, head: dict | None = None, **backbone) -> torch.nn.Module:
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone={'type': 'EoMTViT', 'arch': SMALL_ARCH, 'img_size': 64, 'num_joint_blocks': 2, **backbone},
            decode_head={
                'type': 'EoMTHead',
                'arch': SMALL_ARCH,
                'num_classes': 5,
                'num_joint_blocks': 2,
                'num_queries': 8,
                'num_points': 64,
                **(head or {}),
            },
            train_cfg=dict(),
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
        )
    )


def samples(labels: torch.Tensor) -> list[SegDataSample]:
    return [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]


def test_training_gives_every_layer_and_evaluation_the_last():
    model = small_segmentor()
    feats = model.extract_feat(torch.randn(2, 3, 64, 96))

    masks, classes = model.decode_head.train()(feats)
    assert [m.shape for m in masks] == [(2, 8, 16, 24)] * 3
    assert [c.shape for c in classes] == [(2, 8, 6)] * 3

    masks, classes = model.decode_head.eval()(feats)
    assert [m.shape for m in masks] == [(2, 8, 16, 24)]
    assert [c.shape for c in classes] == [(2, 8, 6)]


@pytest.mark.parametrize(('patch_size', 'num_blocks'), [(4, 1), (8, 1), (16, 2), (32, 3)])
def test_the_number_of_scale_blocks_follows_the_patch_size(patch_size, num_blocks):
    assert len(EoMTHead(5, SMALL_ARCH, num_joint_blocks=1, patch_size=patch_size).upscale) == num_blocks


def test_two_attention_calls_equal_one_with_the_full_mask():
    attention, x = Attention(32, 2), torch.randn(2, 20, 32)
    query_mask = torch.rand(2, 6, 20) > 0.5
    query_mask[..., 0] = True
    full = torch.ones(2, 20, 20, dtype=torch.bool)
    full[:, :6] = query_mask

    q, k, v = attention.qkv(x).reshape(2, 20, 3, 2, 16).permute(2, 0, 3, 1, 4)
    once = F.scaled_dot_product_attention(q, k, v, full[:, None]).transpose(1, 2).reshape(2, 20, 32)

    assert relative_error(attention(x, query_mask), attention.proj(once)) < 1e-5


@pytest.mark.parametrize(('prob', 'free'), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
def test_a_mask_applies_with_its_probability_drawn_for_each_query(prob, free):
    head = EoMTHead(5, SMALL_ARCH, num_joint_blocks=2, num_queries=400)
    masks = torch.full((8, 400, 16, 16), -1.0)  # nothing inside: a masked query sees no patch

    allowed = head._query_mask(masks, 400 + 5 + 16, (4, 4), prob)

    assert allowed.shape == (8, 400, 421)
    assert allowed[..., :405].all()  # queries and prefix tokens always
    patches = allowed[..., 405:].float()
    assert torch.equal(patches.min(-1).values, patches.max(-1).values)  # a query is masked whole or not at all
    assert abs(patches.mean().item() - free) < 0.03


def test_probability_zero_gives_the_numbers_of_evaluation():
    model = small_segmentor()
    feats = model.extract_feat(torch.randn(1, 3, 64, 64))
    model.decode_head.set_mask_probs([0.0, 0.0])

    trained = model.decode_head.train()(feats)[0][-1]
    masked_off = model.decode_head.eval()(feats)[0][-1]

    assert torch.equal(trained, masked_off)


def test_mask_probabilities_travel_with_the_weights():
    head, other = (EoMTHead(5, SMALL_ARCH, num_joint_blocks=2) for _ in range(2))
    head.set_mask_probs([0.0, 0.5])

    other.load_state_dict(head.state_dict())

    assert other.mask_probs == (0.0, 0.5)
    with pytest.raises(ValueError, match='2 blocks need'):
        head.set_mask_probs([1.0])


def test_losses_reach_every_parameter():
    model = small_segmentor()
    labels = torch.randint(0, 5, (2, 64, 64))
    labels[:, :8] = 255

    losses = model.loss(torch.randn(2, 3, 64, 64), samples(labels))

    names = {f'decode.{layer}loss_{kind}' for layer in ('', 'd0.', 'd1.') for kind in ('cls', 'mask', 'dice')}
    assert set(losses) == names | {'decode.matched_queries'}
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('empty', ['one image', 'all images'])
def test_images_without_a_labelled_pixel_train_on(empty):
    model = small_segmentor()
    labels = torch.randint(0, 5, (2, 64, 64))
    labels[0 if empty == 'one image' else slice(None)] = 255

    losses = model.loss(torch.randn(2, 3, 64, 64), samples(labels))

    assert all(loss.isfinite() for loss in losses.values())
    assert losses['decode.loss_cls'] > 0
    assert (losses['decode.loss_mask'] == 0) == (empty == 'all images')
    model.parse_losses(losses)[0].backward()
    # DDP without find_unused_parameters needs a gradient everywhere
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_more_classes_than_queries_train():
    model = small_segmentor(head=dict(no_object_weight=0.1))
    model.decode_head.query_embed = torch.nn.Embedding(3, 32)
    model.decode_head.num_queries = 3
    losses = model.loss(torch.randn(1, 3, 64, 64), samples(torch.arange(5).repeat_interleave(13)[:64].expand(1, 64, 64)))
    assert all(loss.isfinite() for loss in losses.values())
    assert losses['decode.matched_queries'] == 3


def test_the_matched_queries_of_an_image_are_counted_and_are_no_loss():
    model = small_segmentor()
    labels = torch.full((2, 64, 64), 255)
    labels[0, :32], labels[0, 32:], labels[1] = 0, 1, 4
    losses = model.loss(torch.randn(2, 3, 64, 64), samples(labels))
    assert losses['decode.matched_queries'] == 1.5
    total, log = model.parse_losses(losses)
    assert log['decode.matched_queries'] == 1.5
    assert torch.isclose(total, sum(loss for name, loss in losses.items() if 'loss' in name))


def test_a_label_that_is_no_class_stops_training_with_what_to_check():
    model = small_segmentor()
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[0, 3] = 7
    with pytest.raises(ValueError, match=r'64 pixels of gt_sem_seg.*num_classes=5.*reduce_zero_label'):
        model.loss(torch.randn(1, 3, 64, 64), samples(labels))


def test_a_coloured_label_map_is_refused():
    coloured = [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(64, 64, 3, dtype=torch.long)))]
    with pytest.raises(ValueError, match=r'one channel with a class id per pixel.*\(64, 64, 3\)'):
        small_segmentor().loss(torch.randn(1, 3, 64, 64), coloured)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('size', [(64, 64), (70, 109), (33, 130)])
def test_predictions_have_the_inputs_size(mode, size):
    model = small_segmentor(dict(mode=mode, crop_size=(64, 64), stride=(40, 40))).eval()
    with torch.no_grad():
        out = model.predict(torch.randn(2, 3, *size))
    assert [tuple(sample.seg_logits.shape) for sample in out] == [size] * 2
    assert out[0].seg_logits.data.shape[0] == 5
    assert out[0].pred_sem_seg.data.max() < 5


def test_class_scores_are_mask_probability_times_class_probability():
    model = small_segmentor().eval()
    image = torch.randn(1, 3, 64, 80)
    meta = [dict(img_shape=(64, 80), ori_shape=(64, 80))]
    feats = model.extract_feat(image)
    masks, classes = (layers[-1] for layers in model.decode_head(feats))
    full = F.interpolate(masks, (64, 80), mode='bilinear').sigmoid()
    expected = torch.einsum('bqhw,bqk->bkhw', full, classes.softmax(-1)[..., :-1])

    assert relative_error(model.decode_head.predict(feats, meta, {}), expected) < 1e-6


def test_masks_of_a_padded_image_lie_where_the_image_lies():
    """Of an image that is no multiple of the patch size, prediction and losses cut the padding off at the same place."""
    head = EoMTHead(2, SMALL_ARCH, num_joint_blocks=1, num_queries=1, num_points=2000, importance_sample_ratio=0.0)
    rows = torch.linspace(-8, 8, 16)[:, None].expand(16, 16)  # logits that change sign in the middle of 64 padded rows
    head.forward = lambda feats, **_: ([rows[None, None]], [torch.tensor([[[5.0, -5.0, -5.0]]])])
    feats = [torch.zeros(1, 32, 4, 4)]

    scores = head.predict(feats, [dict(img_shape=(50, 64))], {})[0, 0]
    assert scores.shape == (50, 64)
    assert (scores[:31] < 0.5).all() and (scores[33:] > 0.5).all()

    labels = torch.full((1, 50, 64), 255)
    labels[0, 32:] = 0
    loss = head.loss(feats, samples(labels), {})['loss_mask']
    labels[0, 25:] = 0  # where a mask stretched over the image would begin
    shifted = head.loss(feats, samples(labels), {})['loss_mask']
    assert loss < 0.6 * shifted


def test_a_map_of_another_width_and_without_prefix_tokens_is_projected():
    head = EoMTHead(5, SMALL_ARCH, in_channels=20, num_joint_blocks=2, num_queries=8).train()
    masks, _ = head([torch.randn(1, 20, 4, 6)])
    assert masks[0].shape == (1, 8, 16, 24)
    masks, _ = head([[torch.randn(1, 20, 4, 6), torch.randn(1, 20)]])  # mmseg's ViT gives the class token so
    assert masks[0].shape == (1, 8, 16, 24)


def test_a_map_of_an_unexpected_width_is_refused_with_what_to_set():
    head = EoMTHead(5, SMALL_ARCH, num_joint_blocks=2)
    with pytest.raises(ValueError, match=r'has 20 channels, but EoMTHead expects 32.*in_channels=20'):
        head([torch.randn(1, 20, 4, 6)])


def test_half_precision_does_not_reach_matching_and_losses():
    head = EoMTHead(5, SMALL_ARCH, num_joint_blocks=1, num_queries=8, num_points=12544)
    labels = samples(torch.zeros(1, 64, 64, dtype=torch.long))
    masks = [torch.full((1, 8, 16, 16), 20.0)]  # their sum over the points is beyond fp16
    head.forward = lambda feats: (masks, [torch.zeros(1, 8, 6)])
    feats = [torch.zeros(1, 32, 4, 4)]
    torch.manual_seed(0)
    full = head.loss(feats, labels, {})
    torch.manual_seed(0)  # the same points
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = head.loss(feats, labels, {})
    assert all(torch.equal(half[name], value) for name, value in full.items())


def test_a_training_step_in_half_precision_reaches_every_parameter():
    model = small_segmentor()
    labels = samples(torch.randint(0, 5, (2, 64, 64)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(torch.randn(2, 3, 64, 64), labels)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_split_that_leaves_blocks_out_is_refused():
    model = small_segmentor()
    check_split(model)
    model = small_segmentor(num_joint_blocks=1)
    with pytest.raises(ValueError, match=r'num_joint_blocks of backbone and decode_head must be equal.*got 1 and 2'):
        check_split(model)


def test_parts_that_take_their_weights_from_different_files_are_refused():
    model = small_segmentor(init_cfg=dict(type='Pretrained', checkpoint='dinov2.pth'))
    with pytest.raises(ValueError, match=r'init_cfg of backbone and decode_head must be equal.*and None'):
        check_split(model)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match='background is a class'):
        EoMTHead(1, SMALL_ARCH, num_joint_blocks=2)


def test_a_head_without_joint_blocks_is_refused():
    with pytest.raises(ValueError, match='queries never see the image'):
        EoMTHead(5, SMALL_ARCH, num_joint_blocks=0)
