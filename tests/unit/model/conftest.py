import numpy as np
import pytest
import torch

from sparsight.model.nano.reader import NanoReader, build
from sparsight.model.nano.tokenizer import known_words, train_tokenizer
from sparsight.model.nano.weights import NanoSpec
from sparsight.types import ImageVolume

QUESTIONS = ["Is there a nodule in the upper left?", "What is the finding in the lower right?", "How many rings?"] * 3


@pytest.fixture(scope="session")
def reader() -> NanoReader:
    """Random weights, real architecture."""
    tokenizer = train_tokenizer([*QUESTIONS, "yes", "no", "I see a nodule in the upper left."], size=400)
    spec = NanoSpec(
        channels=32, hidden=64, layers=2, heads=2, findings=("nodule", "ring"), words=known_words(QUESTIONS)
    )
    torch.manual_seed(0)
    return NanoReader(*build(spec, tokenizer.get_vocab_size()), tokenizer, spec, "0" * 64)


@pytest.fixture
def volume() -> ImageVolume:
    """A picture of 96 x 120 pixels with something in it: a 20 x 24 token grid."""
    voxels = np.random.default_rng(0).uniform(0, 200, (1, 96, 120)).astype(np.float32)
    voxels[0, 30:50, 40:60] += 55
    return ImageVolume(voxels, np.diag([0.5, 0.5, 1, 1]), "DX", (127.5, 255.0))
