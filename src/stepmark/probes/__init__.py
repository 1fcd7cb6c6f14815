"""Callbacks and readers that measure."""
