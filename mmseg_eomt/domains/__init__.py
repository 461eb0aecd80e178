"""Other cities, weather and sensors than were trained on: their datasets, several in one evaluation, corrupted images."""

from mmseg_eomt.domains.corruptions import Corrupt
from mmseg_eomt.domains.datasets import DomainsDataset, UrbanSynDataset
from mmseg_eomt.domains.metric import DomainIoUMetric

__all__ = ['Corrupt', 'DomainIoUMetric', 'DomainsDataset', 'UrbanSynDataset']
