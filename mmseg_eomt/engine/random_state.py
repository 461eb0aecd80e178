"""Random numbers of a training run, so that a resumed run draws what the whole run would have."""

import torch
from mmengine.runner import Runner


class RandomState:
    """PyTorch's random state at the end of a training iteration, unmoved by evaluation.

    Point sampling and dropout draw from it. Augmentations draw from NumPy's, which mmengine brings back by going through the
    data of the iterations that are over.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] | None = None
        self._resumed: dict[str, torch.Tensor] | None = None

    def keep(self) -> None:
        """Before an evaluation."""
        self._kept = _read()

    def give_back(self) -> None:
        """After it."""
        if self._kept is not None:
            _write(self._kept)
            self._kept = None

    def save(self, checkpoint: dict) -> None:
        """Note it in a checkpoint; one that is saved within an evaluation gets the state before it."""
        checkpoint['random_state'] = _read() if self._kept is None else self._kept

    def load(self, runner: Runner, checkpoint: dict) -> None:
        """Take it from a checkpoint, if the run is resumed."""
        self._resumed = checkpoint.get('random_state') if runner._resume else None

    def start_iteration(self) -> None:
        """At a resumed run's first iteration, whose data is there already."""
        if self._resumed is not None:
            _write(self._resumed)
            self._resumed = None


def _read() -> dict[str, torch.Tensor]:
    state = dict(cpu=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def _write(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state['cpu'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
