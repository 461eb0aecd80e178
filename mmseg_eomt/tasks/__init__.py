"""One encoder, many tasks: several heads and adapters in one pass."""

from mmseg_eomt.tasks.loading import load_tasks
from mmseg_eomt.tasks.segmentor import MultiTaskSegmentor

__all__ = ['MultiTaskSegmentor', 'load_tasks']
