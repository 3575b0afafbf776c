"""The use cases: ask, correct, learn, promote, next_case."""

from sparsight.service.answering import Asked, OnProgress, Progress, new_id
from sparsight.service.learning import Learned
from sparsight.service.question import parse_question
from sparsight.service.service import NextCase, Service

__all__ = ["Asked", "Learned", "NextCase", "OnProgress", "Progress", "Service", "new_id", "parse_question"]
