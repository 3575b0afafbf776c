"""The language stream as a policy over texts: LoRA under quantization, trained by the same trainer as nano's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.errors import WeightsError
from sparsight.model import PolicySelector, RandomSelector, TokenPolicy
from sparsight.model.completions import Prompt
from sparsight.model.hf.adapter import Adapter
from sparsight.model.hf.proofs import pattern
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.writing import HFLanguagePolicy
from sparsight.rl import tuning
from sparsight.rl.language import LanguageConfig, train_language
from sparsight.rl.trainer import Example
from sparsight.types import Question

from .conftest import Make

YES_NO = Question("Is there a mass?", "yes_no", ("yes", "no"))


def _examples(reader: HFReader) -> list[Example]:
    return [
        Example(reader.encode(pattern(1, 60, 80, (0, 10 * i, 20), 20)), YES_NO, ("yes", "no")[i % 2]) for i in range(4)
    ]


def _prompts(examples: Sequence[Example]) -> list[Prompt]:
    return [Prompt(e.grid, e.question, torch.arange(i + 1), reasoned=bool(i % 2)) for i, e in enumerate(examples[:2])]


def _voices(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


@pytest.mark.parametrize(("family", "quantization"), [("gemma3", "nf4"), ("qwen3_vl", "nf4"), ("llava", "int8")])
def test_both_streams_learn(load: Make, family: str, quantization: str) -> None:
    reader = load(family, quantization=quantization)
    adapter = Adapter(reader.model, rank=4)
    examples = _examples(reader)
    policy = TokenPolicy(examples[0].grid.features.shape[1], len(reader.embed(YES_NO)), normed=True)
    before = adapter.to_arrays()
    report = train_language(
        HFLanguagePolicy(reader, adapter),
        PolicySelector(policy, reader),
        examples,
        config=LanguageConfig(steps=2, batch=2, subsets=2, completions=3, limit=8, lr=1e-2),
        judge=lambda example, text: len(set(text.ids)) % 3 / 2,  # any reward that differs
    )
    after = adapter.to_arrays()
    assert len(report.history) == 2
    assert all(np.isfinite(step.reward) for step in report.history)
    assert all(not np.array_equal(before[name], after[name]) for name in before if ".lora_B" in name)


def test_sampled_texts_are_as_likely_as_they_are_said_to_be(load: Make) -> None:
    reader = load("llava", dtype="float32")
    adapter = Adapter(reader.model, rank=4)
    stream = HFLanguagePolicy(reader, adapter)
    prompts = _prompts(_examples(reader))
    texts = stream.sample(prompts, 3, 6, _voices(2))
    assert texts == stream.sample(prompts, 3, 6, _voices(2))
    spoken = stream.speak(prompts, texts)
    flat = [text for group in texts for text in group]
    assert spoken.said.sum(1).tolist() == [len(text.ids) for text in flat]
    for row, (prompt, text) in enumerate(zip([p for p in prompts for _ in range(3)], flat, strict=True)):
        alone = reader.language.likely(
            [reader.prompt(prompt.grid, prompt.question, prompt.reasoned).keep(prompt.keep, reader.language.image)],
            [text.ids],
        )
        assert float((spoken.chosen[row] * spoken.said[row]).sum().detach()) == pytest.approx(
            float(alone[0].detach()), abs=1e-3
        )


def test_a_frozen_stream_stays_and_the_other_moves_on(load: Make) -> None:
    reader = load("llava", dtype="float32")
    adapter = Adapter(reader.model, rank=4)
    stream = HFLanguagePolicy(reader, adapter)
    prompts = _prompts(_examples(reader))
    frozen = stream.frozen()
    texts = stream.sample(prompts, 1, 4, _voices(2))
    before = stream.speak(prompts, texts).log_p.detach()
    with torch.no_grad():
        for matrix in adapter.matrices:
            matrix.normal_(std=0.3)
    moved = stream.speak(prompts, texts).log_p.detach()
    assert (moved - before).abs().max() > 1e-3
    assert torch.allclose(frozen.speak(prompts, texts).log_p, before, atol=1e-5)
    assert torch.equal(stream.speak(prompts, texts).log_p.detach(), moved)  # the loan was given back


def test_an_adapter_comes_back_from_its_arrays(load: Make) -> None:
    reader = load("llava", dtype="float32")
    adapter = Adapter(reader.model, rank=4)
    with torch.no_grad():
        for matrix in adapter.matrices:
            matrix.normal_()
    kept = adapter.to_arrays()
    adapter.from_arrays({})
    assert not any(array.any() for name, array in adapter.to_arrays().items() if ".lora_B" in name)
    adapter.from_arrays(kept)
    assert all(np.array_equal(array, kept[name]) for name, array in adapter.to_arrays().items())
    with pytest.raises(WeightsError, match="adapter of 1 matrices"):
        adapter.from_arrays({"lora.look": np.zeros(1, np.float32)})
    assert all(np.array_equal(array, kept[name]) for name, array in adapter.to_arrays().items())


def test_a_question_is_the_same_to_the_policy_whatever_the_adapter(load: Make) -> None:
    reader = load("llava", dtype="float32")
    before = reader.embed(YES_NO)
    with torch.no_grad():
        for matrix in reader.writer(4).module.parameters():
            matrix.normal_()
    reader.embed.cache_clear()  # as after the server was started anew
    assert torch.equal(reader.embed(YES_NO), before)


def test_an_adapter_begins_the_same_every_time(load: Make) -> None:
    one, two = (Adapter(load("llava").model, rank=4).to_arrays() for _ in range(2))
    assert all(np.array_equal(array, two[name]) for name, array in one.items())


def test_a_training_pass_keeps_one_layer_at_a_time(load: Make) -> None:
    """Else a step of a model of 7 B would hold the insides of all layers; and no dropout is woken."""
    reader = load("llava", dtype="float32")
    stream = reader.writer(4)
    prompts = _prompts(_examples(reader))
    texts = [[stream.phrase(prompt, "yes")] for prompt in prompts]

    def gradients(spoken: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(spoken.sum(), list(stream.module.parameters()), allow_unused=True))

    with torch.no_grad():
        for matrix in stream.module.parameters():
            matrix.normal_(std=0.1)
    stream.module.train()
    rows = [reader.prompt(p.grid, p.question, p.reasoned).keep(p.keep, reader.language.image) for p in prompts]
    kept, spoken = _bytes_kept(lambda: stream.speak(prompts, texts).chosen)
    all_kept, plain = _bytes_kept(lambda: reader.language.likely(rows, [t.ids for (t,) in texts]))
    assert kept < all_kept / 2
    assert not any(part.training for part in reader.model.modules())
    for a, b in zip(gradients(spoken), gradients(plain), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_long_prompt_does_not_stretch_a_step(load: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions with all tokens are read apart from those with few, and the step is the same."""
    losses, passes = [], []
    for most in (4096, 70):
        monkeypatch.setattr(tuning, "_CHUNK_TOKENS", most)
        reader = load("llava", dtype="float32")
        stream = reader.writer(4)
        speak, sizes = stream.speak, list[int]()
        monkeypatch.setattr(stream, "speak", lambda p, t, speak=speak, sizes=sizes: sizes.append(len(p)) or speak(p, t))
        config = tuning.TuningConfig(steps=2, batch=4, full=0.5, lr=1e-3)
        history = tuning.tune_language(stream, RandomSelector(), _examples(reader), config=config)
        losses.append([step.loss for step in history])
        passes.append(sizes)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert passes[0] == [4, 4]
    assert passes[1] == [1] * 8


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_right_answers_are_learned_on_pruned_input(load: Make, family: str, quantization: str) -> None:
    """In bfloat16 and quantized: the loss falls, and no matrix is cut off from its gradient."""
    reader = load(family, quantization=quantization)
    stream = reader.writer(4)
    before = stream.to_arrays()
    reached: list[dict[str, bool]] = []

    def look(step: tuning.TuningStep) -> None:
        named = zip(stream.module.names, stream.module.matrices, strict=True)
        reached.append({name: matrix.grad is not None and bool(matrix.grad.any()) for name, matrix in named})

    config = tuning.TuningConfig(steps=12, batch=4, budgets=(0.1, 0.2), full=0.0, lr=1e-2)
    history = tuning.tune_language(stream, RandomSelector(), _examples(reader), config=config, on_step=look)
    assert np.mean([step.loss for step in history[-3:]]) < 0.7 * history[0].loss
    assert reader.model.dtype == torch.bfloat16
    assert {name for name, there in reached[0].items() if there} == {n for n in reached[0] if ".lora_B" in n}
    assert all(reached[1].values())  # the first step moved one half from zero: now the other has a gradient, too
    assert len(reached[0]) == 2 * 7 * 2
    assert not any(np.array_equal(before[name], array) for name, array in stream.to_arrays().items())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_killed_tuning_resumes_at_the_same_bits(load: Make, tmp_path: Path, quantization: str) -> None:
    """Weights, moments and draws, and what it is held to: the stream as it was at the start, not at the checkpoint."""
    path, config = tmp_path / "run.safetensors", tuning.TuningConfig(steps=13, batch=2, kl=0.5, lr=1e-2)

    def tuned(on_step: Callable[[tuning.TuningStep], None], checkpoint: Path | None) -> dict[str, np.ndarray]:
        reader = load("llava", quantization=quantization)
        stream = reader.writer(4)
        tuning.tune_language(
            stream,
            RandomSelector(),
            _examples(reader),
            config=config,
            seed=5,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return stream.to_arrays()

    def kill(step: tuning.TuningStep) -> None:
        if step.step == 12:
            raise KeyboardInterrupt

    straight = tuned(lambda step: None, None)
    with pytest.raises(KeyboardInterrupt):
        tuned(kill, path)
    seen: list[int] = []
    resumed = tuned(lambda step: seen.append(step.step), path)
    assert seen == [11, 12, 13]
    assert not path.exists()
    assert all(np.array_equal(resumed[name], array) for name, array in straight.items())


def _bytes_kept(call: Callable[[], torch.Tensor]) -> tuple[int, torch.Tensor]:
    """What a pass keeps for its gradient, and what it gives."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        given = call()
    return sum(kept.values()), given
