"""Data to train on: the real files when present, otherwise generated ones, labelled so."""
