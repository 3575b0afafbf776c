"""Readers (vision encoder + language stream) and selectors (visual streams), in torch."""
