"""Position and patch embeddings at another grid or patch size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def exporting() -> bool:
    """Whether torch.export is following the code. Goes when PyTorch 2.6, which cannot tell, is no longer allowed."""
    return getattr(torch.compiler, 'is_exporting', torch.jit.is_tracing)()


def grid_of(pos_embed: Tensor, noted: Tensor | None, wanted: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that a position embedding (1, h · w, C) is for.

    Args:
        pos_embed: Without prefix tokens.
        noted: Rows and columns as its checkpoint notes them; None if it does not.
        wanted: The model's, which are taken where they fit and nothing is noted.

    Raises:
        ValueError: If nothing tells: it is of another number of places, and no square.
    """
    places = pos_embed.shape[1]
    if noted is not None and int(noted.prod()) == places:
        return tuple(noted.tolist())
    side = round(places**0.5)
    if places == wanted[0] * wanted[1]:
        return wanted
    if side * side != places:
        raise ValueError(
            f'The checkpoint has a position embedding for {places} patches, no square, and img_size gives {wanted}: set '
            f'img_size to what it was in training; other image sizes work at run time.'
        )
    return side, side


def resize_pos_embed(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Interpolate a learned position embedding, bicubic with antialiasing as timm's ``resample_abs_pos_embed``.

    Args:
        pos_embed: (1, h · w, C) for ``old_grid`` = (h, w), without prefix tokens.
        old_grid: Rows and columns that it was made for.
        new_grid: Rows and columns wanted.

    Returns:
        (1, rows · columns, C) in the dtype of ``pos_embed``.
    """
    dynamic = any(isinstance(side, torch.SymInt) for side in new_grid)  # comparing would fix the exported size
    if not dynamic and old_grid == new_grid:
        return pos_embed
    if exporting():
        return _resized_by_products(pos_embed, old_grid, new_grid)
    maps = pos_embed.float().transpose(1, 2).unflatten(2, old_grid)
    maps = F.interpolate(maps, new_grid, mode='bicubic', antialias=True)
    return maps.flatten(2).transpose(1, 2).to(pos_embed.dtype)


def _resized_by_products(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """The same interpolation as a product for rows and one for columns: an exported graph learns the grid when it runs."""
    maps = pos_embed.float()[0].unflatten(0, old_grid)
    rows, columns = (_cubic_weights(*sides, pos_embed.device) for sides in zip(old_grid, new_grid))
    maps = torch.matmul(rows, maps.flatten(1)).unflatten(1, maps.shape[1:])
    return torch.matmul(columns, maps).flatten(0, 1)[None].to(pos_embed.dtype)


def _cubic_weights(old: int, new: int, device: torch.device) -> Tensor:
    """Weights (new, old) of old places in the new ones by Keys' cubic, stretched where there are fewer new places."""
    scale = torch.full((), old / new, device=device)
    centres = (torch.arange(new, device=device) + 0.5) * scale
    distance = (torch.arange(old, device=device) + 0.5 - centres[:, None]).abs() / scale.clamp(min=1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdim=True)


def resize_patch_embed(weight: Tensor, patch_size: int) -> Tensor:
    """Resize a patch embedding so that it gives the same tokens for resized patches.

    The pseudo-inverse of the bicubic resizing is applied to the weights, as timm's ``resample_patch_embed`` does.

    Args:
        weight: (C, 3, p, p).
        patch_size: New side in pixels.

    Returns:
        (C, 3, patch_size, patch_size) in the dtype of ``weight``.

    Source: FlexiViT (Beyer et al., CVPR 2023), section 3.4.
    """
    old = weight.shape[-1]
    if old == patch_size:
        return weight
    # column i is the resized image of the i-th basis patch
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    size = (patch_size, patch_size)
    resize = F.interpolate(basis, size, mode='bicubic', antialias=True).flatten(1).T
    pinv = torch.linalg.pinv(resize.T).to(weight.device)
    return (weight.double().flatten(2) @ pinv.T).unflatten(2, size).to(weight.dtype)
