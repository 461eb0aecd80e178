"""The losses over several processes, and against a second implementation."""

import subprocess
from pathlib import Path

import torch
from conftest import ROOT, environment, free_port
from transformers.models.mask2former.modeling_mask2former import dice_loss, sample_point, sigmoid_cross_entropy_loss

from mmseg_eomt.models.losses import MaskClassificationLoss, SemanticTargets, sample_maps


def criterion(num_points: int) -> MaskClassificationLoss:
    return MaskClassificationLoss(6, num_points, 3.0, 0.75, 2.0, 5.0, 5.0, 0.1)


def example(num_classes_present: int) -> tuple[list, list, SemanticTargets]:
    generator = torch.Generator().manual_seed(num_classes_present)
    masks = torch.randn(2, 8, 16, 16, generator=generator)
    classes = torch.randn(2, 8, 7, generator=generator)
    labels = torch.randint(0, num_classes_present, (2, 64, 64), generator=generator)
    return [masks, masks.flip(1)], [classes, classes.flip(1)], SemanticTargets.from_label_maps(labels, 6, 255)


def mask_loss_of_rank(rank: int, port: int, out: str) -> None:
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    losses = criterion(500)
    masks, classes, targets = example(2 + 3 * rank)
    scale = torch.ones(2)
    matches = losses.match(masks, classes, targets, scale)
    points = torch.rand(matches.shape[0] * matches.shape[1], 500, 2, generator=torch.Generator().manual_seed(0))
    over_both, _ = losses.mask_losses(masks, matches, targets, scale, points)
    torch.distributed.destroy_process_group()
    alone, _ = losses.mask_losses(masks, matches, targets, scale, points)
    torch.save(dict(ratio=alone / over_both, num_masks=matches.shape[1]), f'{out}/{rank}.pth')


def test_the_number_of_masks_is_averaged_over_all_processes(tmp_path):
    port, env = free_port(), environment(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}:{Path(__file__).parent}')
    code = f'from test_losses import mask_loss_of_rank; mask_loss_of_rank({{}}, {port}, {str(tmp_path)!r})'
    ranks = [subprocess.Popen(['python', '-c', code.format(rank)], cwd=ROOT, env=env) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    ranks = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1)]
    assert [rank['num_masks'] for rank in ranks] == [4, 10]
    for rank in ranks:
        assert torch.allclose(rank['ratio'], torch.full((2,), 7 / rank['num_masks']))


def test_every_layer_of_one_pass_equals_transformers_layer_by_layer():
    losses = criterion(500)
    masks, classes, targets = example(5)
    scale = torch.ones(2)
    matches = losses.match(masks, classes, targets, scale)
    num_masks = matches.shape[1]
    points = torch.rand(2 * num_masks, 500, 2)
    loss_mask, loss_dice = losses.mask_losses(masks, matches, targets, scale, points)

    for layer, (image, query, label) in enumerate(match.T for match in matches):
        at = points[layer * num_masks : (layer + 1) * num_masks]
        logits = sample_point(masks[layer][image, query][:, None], at, align_corners=False).squeeze(1)
        target = (targets.labels[image] == label[:, None, None]).float()
        target = sample_point(target[:, None], at, align_corners=False).squeeze(1)
        assert torch.allclose(loss_mask[layer], sigmoid_cross_entropy_loss(logits, target, num_masks), atol=1e-6)
        assert torch.allclose(loss_dice[layer], dice_loss(logits, target, num_masks), atol=1e-6)


def test_label_maps_read_at_points_equal_sampled_masks():
    labels = torch.randint(0, 4, (2, 9, 13))
    labels[:, :3] = 255
    targets = SemanticTargets.from_label_maps(labels, 4, 255)
    points = torch.rand(2, 300, 2)
    masks = torch.stack([(labels == label).float() for label in range(4)], 1)

    assert torch.allclose(targets.sample_all(points), sample_maps(masks, points), atol=1e-6)


def test_most_points_lie_where_the_prediction_is_least_certain():
    losses = criterion(400)
    maps = torch.linspace(-4, 4, 32)[None, None].expand(3, 32, 32)  # uncertain in the middle columns
    points = losses.draw_points(maps, torch.ones(2))
    assert points.shape == (3, 400, 2)
    near_the_middle = ((points[..., 0] - 0.5).abs() < 0.2).float().mean()
    assert near_the_middle > 0.8  # 3 of 4 points, and two fifths of the rest
