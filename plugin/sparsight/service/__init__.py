"""The use cases: ask, correct, learn, promote, next_case."""

from sparsight.service.learning import Learned
from sparsight.service.service import Asked, NextCase, OnProgress, Progress, Service, parse_question

__all__ = ["Asked", "Learned", "NextCase", "OnProgress", "Progress", "Service", "parse_question"]
