"""Fixtures that several rooms' unit tests share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import save

from sparsight.model import TokenPolicy
from sparsight.model.nano.glance import Glance
from sparsight.model.nano.reader import NanoReader, build
from sparsight.model.nano.tokenizer import known_words, train_tokenizer
from sparsight.model.nano.weights import NanoSpec, save_policy
from sparsight.sim import texts
from sparsight.types import Question


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader of random weights and real architecture, with its policy: nothing in it has learned anything."""
    folder = tmp_path_factory.mktemp("reader")
    words = list(texts())
    tokenizer = train_tokenizer(words, size=600)
    spec = NanoSpec(channels=32, hidden=64, layers=2, heads=2, findings=("nodule", "ring"), words=known_words(words))
    torch.manual_seed(0)
    reader = NanoReader(*build(spec, tokenizer.get_vocab_size()), tokenizer, spec, "0" * 64)
    reader.save(folder)
    wide = reader.embed(Question("is there a nodule?")).shape[0]
    policy = TokenPolicy(reader.encoder.width, wide)
    torch.nn.init.normal_(policy.out.weight)
    save_policy(folder, save(policy.to_arrays()))
    return folder


@pytest.fixture(scope="session")
def looking_folder(reader_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny reader with a first look, and a policy that begins at its log-odds."""
    folder = tmp_path_factory.mktemp("looking")
    plain = NanoReader.load(reader_folder)
    torch.manual_seed(1)
    spec = replace(plain.spec, glance=16)
    reader = NanoReader(plain.encoder, plain.language, plain.tokenizer, spec, "0" * 64, glance=Glance(2, 16))
    reader.save(folder)
    policy = TokenPolicy(reader.encoder.width, reader.embed(Question("is there a nodule?")).shape[0], prior=2)
    policy.begin_at(reader.encoder.logits.weight[:2] / 3, reader.encoder.logits.bias[:2] / 3)
    save_policy(folder, save(policy.to_arrays()))
    return folder
