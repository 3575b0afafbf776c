"""The use cases: ask, correct, learn, promote, next_case."""

from sparsight.service.service import Asked, Learned, NextCase, OnProgress, Progress, Service, parse_question

__all__ = ["Asked", "Learned", "NextCase", "OnProgress", "Progress", "Service", "parse_question"]
