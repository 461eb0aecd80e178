"""From folders of images and masks to a dataset: pairs, classes, a split and a config, for ``init_dataset``."""
