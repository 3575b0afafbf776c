"""Every family reads few tokens as it reads them among all, and shows them where they are."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsight import evidence
from sparsight.errors import BudgetError, ConfigError, MemoryFullError, QuestionError
from sparsight.imaging.grid import tokens_to_labelmap
from sparsight.model import RandomSelector, ScoreRequest
from sparsight.model.hf import proofs, tiny
from sparsight.model.hf.answers import messages
from sparsight.model.hf.families import FAMILIES, family_of
from sparsight.model.hf.proofs import pattern, prove
from sparsight.model.hf.reader import HFReader
from sparsight.model.hf.tiny import families
from sparsight.model.hf.vision import Pace, memory_full, thinned
from sparsight.model.selectors import finish
from sparsight.model.together import Work
from sparsight.types import ImageVolume, Question, Selection, TokenGrid

from .conftest import Make

YES_NO = Question("Is there a mass?", "yes_no", ("yes", "no"))


def test_there_is_a_tiny_model_of_every_family() -> None:
    assert set(families()) == set(FAMILIES)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_gaps_without_a_mask_cut_attention(reader_of: Make, family: str) -> None:
    """Why the mask is always given: without it, and without a cache, transformers takes a gap for another sequence."""
    reader = reader_of(family)
    grid = reader.encode(pattern(1, 96, 120))
    pruned = reader.prompt(grid, YES_NO, False).keep(torch.arange(0, grid.n, 7), reader.language.image)
    given = reader.language.inputs([pruned])
    with torch.no_grad():
        right = reader.model(**given, use_cache=False).logits[:, -1]
        given.pop("attention_mask")
        cut = reader.model(**given, use_cache=False).logits[:, -1]
    assert (right - cut).abs().max() > 1e-3


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_overlay_lies_on_the_bright_patch(reader_of: Make, family: str) -> None:
    """From a white square to the voxels that evidence marks, through the family's own map."""
    reader = reader_of(family)
    dim = pattern(1, 90, 120)
    before = reader.encode(dim)
    v, u = before.shape[1] // 2, before.shape[2] - 2
    i, j = (before.uvw_to_ijk @ [u, v, 0, 1])[:2]
    size = int(0.8 * min(before.patch[:2]))
    corner = round(j - size / 2), round(i - size / 2)
    bright = pattern(1, 90, 120, (0, *corner), size)
    after = reader.encode(bright)
    changed = (after.features - before.features).norm(dim=-1)
    chosen = finish(changed, 1, "changed", "greedy", None)
    marked = tokens_to_labelmap(after, chosen.keep, bright.shape)[0].astype(bool)
    square = bright.voxels[0] == 100
    assert (marked & square).sum() >= 0.9 * square.sum()
    assert marked.sum() <= 2 * square.sum()
    found = evidence.describe(bright, after, chosen, necessity=None, threshold=0.5)
    (low, high) = found.regions[0].box_mm
    assert low[0] <= corner[1] + 1
    assert low[1] <= corner[0] + 1
    assert high[0] >= corner[1] + size - 2
    assert high[1] >= corner[0] + size - 2


def _looked(reader: HFReader, grid: TokenGrid, keep: NDArray[np.int64], text: str) -> torch.Tensor:
    """What the model itself gives out where one pass reads prompt and text by plain attention."""
    prompt = reader.prompt(grid, YES_NO, True).keep(torch.from_numpy(keep), reader.language.image)
    ids = reader.language.ids(text)
    followed = prompt.then(ids, reader.family.answer_type)
    reader.model.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        out = reader.model(**reader.language.inputs([followed]), use_cache=False, output_attentions=True)
    reader.model.set_attn_implementation({"text_config": "sdpa"})
    weights = torch.stack([layer[0].mean(0)[-len(ids) :].mean(0) for layer in out.attentions]).mean(0)
    visual = (followed.ids == reader.language.image).nonzero().squeeze(1)
    return weights[visual[[prompt.rows.tolist().index(int(row)) for row in prompt.study.layout.token[keep]]]]


def _kept(grid: TokenGrid, keep: NDArray[np.int64]) -> Selection:
    return Selection(keep, np.zeros(grid.n, np.float32), 0.0, "greedy", "any")


@pytest.mark.parametrize(("family", "tiles"), [(f, 1) for f in FAMILIES] + [("idefics3", 2)])
def test_what_it_looks_at_is_its_own_attention(reader_of: Make, family: str, tiles: int) -> None:
    reader = reader_of(family, tiles)
    grid = reader.encode(pattern(1, 90, 120))
    for keep in (np.arange(1, grid.n, 3), np.arange(grid.n)):
        found = reader.attention(YES_NO, grid, _kept(grid, keep), "I see a mass.")
        assert 0 < found.sum() <= 1
        torch.testing.assert_close(found, _looked(reader, grid, keep, "I see a mass."), atol=1e-6, rtol=1e-3)
    assert reader.model.config.get_text_config()._attn_implementation == "sdpa"
    assert len(reader.attention(YES_NO, grid, _kept(grid, keep), "")) == grid.n


def test_layers_that_see_only_the_last_tokens_look_at_no_others() -> None:
    model, processor = tiny.tiny("gemma3")
    for part in (model.config.get_text_config(), *(m for m in model.modules() if hasattr(m, "sliding_window"))):
        part.sliding_window = 205
    reader = HFReader(model, processor, family_of("gemma3"), "0" * 64, name="gemma3", pace=Pace(tokens=64))
    grid = reader.encode(pattern(3, 90, 120))
    found = reader.attention(YES_NO, grid, _kept(grid, np.arange(grid.n)), "I see a mass.")
    assert found[0] == 0 < found[-1]
    torch.testing.assert_close(found, _looked(reader, grid, np.arange(grid.n), "I see a mass."), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("window", [20, 64, 120, 180])
def test_texts_join_and_leave_where_layers_see_only_the_last_tokens(window: int) -> None:
    model, processor = tiny.tiny("gemma3")
    for part in (model.config.get_text_config(), *(m for m in model.modules() if hasattr(m, "sliding_window"))):
        part.sliding_window = window
    reader = HFReader(model, processor, family_of("gemma3"), "0" * 64, name="gemma3", pace=Pace(tokens=64))
    grid = reader.encode(pattern(3, 96, 96))
    whole = reader.prompt(grid, YES_NO, True)
    kept = proofs._subsets(grid)
    longest = max(len(whole.keep(keep, reader.language.image).ids) for keep in kept)
    assert window < longest, "something is out of sight"
    with torch.no_grad():
        worst = proofs._joined(reader, whole, kept)
    assert worst is not None
    assert worst < 1e-4


@pytest.mark.parametrize("family", list(FAMILIES))
def test_scores_and_answers(reader_of: Make, family: str) -> None:
    reader = reader_of(family)
    grid = reader.encode(pattern(3, 60, 80))
    keeps = torch.stack([torch.arange(0, 8), torch.arange(8, 16)])
    likely, blind = reader.score(
        [ScoreRequest(grid, YES_NO, "yes", keeps), ScoreRequest(grid, YES_NO, "yes", keeps[:1, :0])]
    )
    assert likely.shape == (2,)
    assert blind.shape == (1,)
    assert (likely < 0).all()
    assert likely[0] != likely[1]
    shown: list[str] = []
    answer = reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 8, seed=1), on_token=shown.append)
    assert answer.text in {"yes", "no"}
    assert "".join(shown).startswith(answer.reasoning.split("<")[0])
    assert 0.5 <= answer.confidence <= 1
    assert set(answer.timings_ms) == {"decode", "prefill"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_texts_behind_one_reading_are_as_likely_as_each_by_itself(reader_of: Make, family: str) -> None:
    reader = reader_of(family)
    grid = reader.encode(pattern(1, 60, 80))
    prompt = reader.prompt(grid, YES_NO, False).keep(torch.arange(0, grid.n, 3), reader.language.image)
    texts = [reader.language.ids(text) for text in ("yes", "no", "a", "it is bright")]
    together = reader.language.likely_after(prompt, texts)
    with torch.no_grad():
        alone = torch.cat([reader.language.likely([prompt], [text]) for text in texts])
    assert together.tolist() == pytest.approx(alone.tolist(), abs=2e-3)


def test_of_several_ends_the_answer_has_that_of_its_turn(reader_of: Make) -> None:
    """Qwen and Gemma name two, and the lower one ends a document: after an answer it is all but impossible."""
    reader = reader_of("llava")
    tokenizer, ends = reader.processor.tokenizer, [256, reader.language.end]
    assert tokenizer.convert_ids_to_tokens(ends)[1] == "<end>"
    assert ends[0] < ends[1]
    assert family_of("llava").end(reader.processor, frozenset(ends)) == ends[1]
    template, reader.processor.chat_template = reader.processor.chat_template, "no turn ends"
    try:
        assert family_of("llava").end(reader.processor, frozenset(ends)) == tokenizer.eos_token_id
    finally:
        reader.processor.chat_template = template


def test_a_template_that_cannot_write_pictures_is_refused(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of("llava")
    monkeypatch.setattr(reader.processor, "chat_template", "{{ 'USER: ' + messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="chat template"):
        reader.prompt(reader.encode(pattern(1, 60, 80)), YES_NO, False)


def _says(text: str) -> Work[str]:
    yield from ()
    return text


def test_reasoning_that_was_cut_off_is_no_answer(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, free = reader_of("llava"), Question("What is it?")
    said = iter(["<think>It could be", "a ring"])
    monkeypatch.setattr(reader, "_say", lambda prompt, on_token: _says(next(said)))
    grid = reader.encode(pattern(1, 60, 80))
    answer = reader.read(free, grid, RandomSelector().select(grid, free, 8, seed=1))
    assert (answer.reasoning, answer.text) == ("It could be", "a ring")


@pytest.mark.parametrize("said", ["bright " * 40, "a ring <row_1_col_1>"])
def test_what_a_model_answers_can_be_scored(reader_of: Make, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Else a free question with a long answer would be refused once it was answered: its necessity is measured."""
    reader, free = reader_of("idefics3"), Question("What is it?")
    monkeypatch.setattr(reader, "_say", lambda prompt, on_token: _says(f"<answer>{said}</answer>"))
    grid = reader.encode(pattern(1, 60, 80))
    answer = reader.read(free, grid, RandomSelector().select(grid, free, 8, seed=1))
    assert answer.text
    assert said.startswith(answer.text)
    assert len(reader.score([ScoreRequest(grid, free, answer.text, torch.arange(4)[None])])) == 1


def test_a_template_that_begins_a_thought(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, free = reader_of("llava"), Question("What is it?")
    template = reader.processor.chat_template.replace("[assistant]", "[assistant]<think>")
    monkeypatch.setattr(reader.processor, "chat_template", template)
    grid = reader.encode(pattern(1, 60, 80))
    direct = reader.prompt(grid, free, False)
    assert reader.processor.tokenizer.decode(direct.ids).endswith("<think>\n</think>\n\n")
    said = iter(["It is bright.</think><answer>a ring</answer>", "It may be", "a line"])
    monkeypatch.setattr(reader, "_say", lambda prompt, on_token: _says(next(said)))
    keep = RandomSelector().select(grid, free, 8, seed=1)
    answers = [reader.read(free, grid, keep) for _ in range(2)]
    assert [(a.reasoning, a.text) for a in answers] == [("It is bright.", "a ring"), ("It may be", "a line")]
    assert not [proof for proof in prove(reader) if not proof.passed]


def test_prompts_hold_a_study_once(reader_of: Make) -> None:
    """A volume's features are many hundred MB, and a step of learning has dozens of prompts."""
    reader = reader_of("qwen3_vl")
    grid = reader.encode(pattern(3, 60, 80))
    prompt = reader.prompt(grid, YES_NO, False).keep(torch.arange(5), reader.language.image)
    held = (prompt.study.tokens, prompt.study.rest, *prompt.study.deep)
    assert {part.data_ptr() for part in held} <= {part.data_ptr() for part in (grid.features, *grid.extras.values())}


def test_scores_together_are_bounded_by_their_logits(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of("llava")
    grid = reader.encode(pattern(1, 60, 80))
    request = ScoreRequest(grid, YES_NO, "yes", torch.arange(8).reshape(4, 2))
    (together,) = reader.score([request])
    monkeypatch.setattr(
        "sparsight.model.hf.reader._CHUNK_LOGITS", 2 * 5 * reader.language.words
    )  # two rows of y, e, s, end
    likely, rows = reader.language.likely, []
    monkeypatch.setattr(reader.language, "likely", lambda p, t: rows.append(len(p)) or likely(p, t))
    (apart,) = reader.score([request])
    assert rows == [2, 2]
    assert torch.allclose(together, apart, atol=1e-4)
    assert reader.score([]) == []
    assert [len(part) for part in reader.score([replace(request, keeps=torch.empty(0, 3, dtype=torch.long))])] == [0]


def test_a_choice_is_one_of_the_choices(reader_of: Make) -> None:
    reader = reader_of("llava")
    question = Question("What is it?", "choice", ("mass", "ring", "line"))
    grid = reader.encode(pattern(1, 60, 80))
    answer = reader.read(question, grid, RandomSelector().select(grid, question, 8, seed=1))
    assert answer.choice is not None
    assert answer.text == question.choices[answer.choice]


def test_what_is_too_much_is_refused(reader_of: Make) -> None:
    reader = reader_of("llava")
    grid = reader.encode(pattern(1, 60, 80))
    with pytest.raises(QuestionError, match="tokens"):
        reader.score([ScoreRequest(grid, Question("a" * 600), "yes", torch.arange(2)[None])])
    with pytest.raises(QuestionError, match="a question that holds a special token"):
        reader.prompt(grid, Question("what is <image> here?"), False)
    with pytest.raises(QuestionError, match="a choice that holds a special token"):
        reader.prompt(grid, Question("what is here?", "choice", ("a mass", "<image>")), False)
    with pytest.raises(QuestionError, match="a choice of 200 tokens"):
        reader.prompt(grid, Question("what is here?", "choice", ("a mass", "a" * 200)), False)
    with pytest.raises(QuestionError, match="an answer that holds a special token"):
        reader.check(YES_NO, "no <image>")  # a correction that could never be learned from
    reader.max_tokens, most = 4, reader.max_tokens
    try:
        with pytest.raises(BudgetError, match="5 tokens"):
            reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 5, seed=1))
    finally:
        reader.max_tokens = most


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="bert"):
        family_of("bert")


def test_a_long_volume_is_read_at_even_slices(reader_of: Make) -> None:
    reader = reader_of("internvl")
    study = pattern(50, 40, 40, (30, 8, 8), 20)
    grid = reader.encode(study)
    assert grid.shape[0] == 24
    assert grid.patch[2] == pytest.approx(50 / 24)
    centres = grid.uvw_to_ijk[2, 2] * np.arange(24) + grid.uvw_to_ijk[2, 3]
    assert np.abs(centres - thinned(50, 24)).max() <= 1.05  # a slice stands for the share it lies in
    before = reader.encode(pattern(50, 40, 40))
    changed = (
        (grid.features - before.features).norm(dim=-1).reshape(grid.shape).amax((1, 2)).nonzero().squeeze(1).tolist()
    )
    assert all(abs(centres[w] - 30) < 2 for w in changed)


def test_a_full_memory_takes_a_smaller_picture_and_says_so(reader_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of("idefics3", 2)
    look, given = reader.vision._look, []

    def full(pixels: NDArray[np.float32]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        given.append(pixels.shape)
        if pixels.shape[1] > 64:
            raise torch.OutOfMemoryError("no room")
        return look(pixels)

    monkeypatch.setattr(reader.vision, "_look", full)
    grid = reader.encode(pattern(1, 60, 60))
    assert [shape[1] for shape in given] == [128, 64]
    answer = reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 4, seed=1))
    assert answer.notes == ("seen at 4 x 4 tokens in 1 slices only: the device's memory held no more",)
    monkeypatch.setattr(reader.vision, "_look", lambda pixels: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(MemoryFullError, match="memory"):
        reader.encode(pattern(1, 60, 60))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])  # of one size; of any, up to so many tokens
def test_an_answer_says_what_was_shrunk_and_passed_over(reader_of: Make, family: str) -> None:
    reader = reader_of(family)
    side = reader.vision.long_side(True, reader.vision.pace)

    def notes(study: ImageVolume) -> tuple[str, ...]:
        grid = reader.encode(study)
        return reader.read(YES_NO, grid, RandomSelector().select(grid, YES_NO, 4, seed=1)).notes

    assert notes(pattern(1, side, side)) == ()
    assert notes(pattern(1, side // 2, side // 2)) == ()  # enlarged: nothing is lost
    assert notes(pattern(3, side, side)) == ()
    assert notes(pattern(1, 2 * side, 5 * side // 2)) == ("shrunk: a pixel that was seen is 2.5 x 2.5 of the image's",)
    assert notes(pattern(50, side, side)) == ("seen in 24 of 50 slices, spread evenly",)
    long = replace(pattern(50, 3 * side, 3 * side), ijk_to_lps=np.diag([0.5, 0.5, 2.0, 1.0]))
    assert notes(long) == (
        "shrunk: a pixel that was seen is 3.0 x 3.0 of the image's",
        "seen in 24 of 50 slices, spread evenly",
    )


@given(st.builds(Pace, st.integers(16, 16384), st.integers(1, 6), st.integers(1, 512), st.just(4)))
def test_a_smaller_pace_is_never_larger(pace: Pace) -> None:
    smaller = pace.smaller()
    assert smaller.tokens <= pace.tokens
    assert smaller.tiles <= pace.tiles
    assert smaller.slices <= pace.slices


def test_what_did_not_fit_is_given_back() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def ask_for_more() -> None:
        tensor = torch.zeros(8)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(MemoryFullError), memory_full():
        ask_for_more()
    assert held[0]() is None


def test_the_same_question_is_embedded_alike(reader_of: Make) -> None:
    reader = reader_of("gemma3")
    one, two = reader.embed(YES_NO), reader.embed(replace(YES_NO, text="Where is the mass?"))
    assert one.shape == (2 * reader.model.config.get_text_config().hidden_size,)
    assert torch.equal(one, reader.embed(YES_NO))
    assert not torch.equal(one, two)
    assert reader.saliency(reader.encode(pattern(1, 60, 80))).shape == (reader.encode(pattern(1, 60, 80)).n,)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_says_which_image_is_the_prior(reader_of: Make, family: str) -> None:
    """And what the model's own processor makes of the same turn is the same prompt, to the bit."""
    reader, both = reader_of(family), replace(pattern(2, 96, 96), pair=True)
    pair, volume = reader.encode(both), reader.encode(pattern(2, 96, 96))
    whole = reader.prompt(pair, YES_NO, True)
    assert "The first image is the prior" in reader.processor.tokenizer.decode(whole.ids)
    assert "slices of one study, in order" in reader.processor.tokenizer.decode(reader.prompt(volume, YES_NO, True).ids)
    given = reader.vision.inputs(both, reader.family.write(reader.processor, messages(YES_NO, 2, True, pair=True)))
    assert torch.equal(given["input_ids"][0], whole.ids)
    assert torch.equal(pair.features, volume.features)
    assert pair.shape == volume.shape
