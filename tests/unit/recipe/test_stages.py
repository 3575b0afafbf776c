from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from sparsight.errors import TrainingError
from sparsight.model import PolicySelector, load_reader
from sparsight.model.nano.encoder import LocalEncoder
from sparsight.model.nano.language import NanoLanguage, Row
from sparsight.model.nano.reader import NanoReader
from sparsight.model.nano.tokenizer import ANSWER, END_ANSWER, END_THINK, QUESTION, THINK, train_tokenizer
from sparsight.model.positions import encode_positions
from sparsight.recipe.encoder_stage import ATTRIBUTES, WeakBatches, WeakHeads
from sparsight.recipe.fit import fit
from sparsight.recipe.language_stage import Mixture, answer_loss, naming_loss, subset, write
from sparsight.recipe.policy_stage import SOFTENED, fresh_policy
from sparsight.recipe.pool import Item, Pool
from sparsight.recipe.sizes import SIZES, Size
from sparsight.recipe.supervision import REGIONS, Weak
from sparsight.recipe.train import _Recipe
from sparsight.sim import KINDS, PRESETS, Simulator
from sparsight.types import Question, TokenGrid


def test_the_encoders_loss_is_low_where_the_answer_is_and_high_elsewhere() -> None:
    heads = WeakHeads(4, 2, 2)
    with torch.no_grad():
        heads.findings.weight.copy_(torch.eye(2, 4) * 4)
        heads.findings.bias.zero_()
    features = torch.zeros(1, 64, 4)
    features[0, 9, 0] = 1.0  # finding 0 in the upper left of 8 x 8
    upper_left, lower_right = REGIONS.index("upper left"), REGIONS.index("lower right")

    def loss(weak: Weak) -> float:
        return float(heads.loss(features, (1, 8, 8), [(0, weak)]).detach())

    assert loss(Weak("present", (0,), 1, upper_left)) < 0.01
    assert loss(Weak("present", (0,), 1, lower_right)) > 2
    assert loss(Weak("present", (0,), 0, lower_right)) < 0.1
    assert loss(Weak("which_finding", (), 0, upper_left)) < 0.01
    assert loss(Weak("which_finding", (), 1, upper_left)) > 2
    assert loss(Weak("which_region", (0,), 0, options=(1, 2, 3, 4))) < 0.01
    assert loss(Weak("which_region", (0,), 3, options=(1, 2, 3, 4))) > 2


def test_the_encoder_says_the_log_odds_that_the_loss_is_taken_of() -> None:
    heads, encoder = WeakHeads(4, 3, 2), LocalEncoder(4, 3 + ATTRIBUTES)
    with torch.no_grad():
        heads.findings.bias.normal_(generator=torch.Generator().manual_seed(0))
        heads.fold_into(encoder.logits)
        tokens = encoder(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)))  # (1, 1, 1, 4 + 6)
        odds = encoder.odds(tokens, 2)[0, 0, 0]
        loss = heads.loss(tokens[0, :, :, :4], (1, 1, 1), [(0, Weak("present", (1,), 1))])
    assert tokens.shape[-1] == encoder.width == 4 + heads.outputs
    assert float(loss) == pytest.approx(float(-torch.nn.functional.logsigmoid(odds[1])), rel=1e-4)
    assert torch.allclose(tokens[0, 0, 0, 4:6], (odds / 8).tanh(), atol=1e-6)


def test_naming_is_rewarded_where_something_is_seen(language: NanoLanguage) -> None:
    names = torch.tensor([20, 30])
    features, odds = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)), torch.randn(12, 2)
    loss = naming_loss(language, features, odds, names)
    assert torch.isfinite(loss)
    loss.backward()
    assert language.project[0].weight.grad is not None
    language.zero_grad()
    with torch.no_grad():  # nothing is seen anywhere
        assert float(naming_loss(language, features, torch.full((12, 2), -50.0), names)) < 1e-3


def test_a_pool_encodes_as_the_reader_does_and_keeps_no_mask_for_training() -> None:
    pool, encoder = Pool(), LocalEncoder(32, 7)
    for index in range(3):
        pool.add(Simulator().scene("train", index).cases, "sim")
    pool.encode(encoder)
    assert all(item.share is None for item in pool.items)
    with torch.no_grad():
        alone = encoder(pool.image(2)).reshape(-1, encoder.width)
    assert torch.allclose(pool.grid(2).features, alone, atol=0.02)  # float16
    scored = Pool()
    scored.add(Simulator().scene("test", 1).cases, "sim", scoring=True)
    assert any(item.share is not None and item.share.sum() == pytest.approx(1.0, abs=1e-3) for item in scored.items)


def test_the_encoder_learns_from_answers_alone() -> None:
    torch.manual_seed(0)
    pool = Pool()
    for index in range(12):
        pool.add(Simulator().scene("train", index).cases, "sim")
    batches = WeakBatches(pool, KINDS, 6)
    encoder, heads = LocalEncoder(32, 10), WeakHeads(32, len(KINDS), len(KINDS))
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=3e-3)
    losses = []
    for step in range(40):
        loss = batches.loss(encoder, heads, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:8])


@pytest.fixture(scope="module")
def language() -> NanoLanguage:
    torch.manual_seed(0)
    return NanoLanguage(16, 400, hidden=64, layers=2, heads=2).eval()


def test_the_loss_is_of_the_answer_and_its_reasoning_alone(language: NanoLanguage) -> None:
    tokenizer = train_tokenizer(["Is there a nodule? yes no ring Where is it I see"] * 3, size=400)
    items = [
        Item(0, Question(q), a, t, "", "")
        for q, a, t in (("Is there a nodule?", "yes", ""), ("Where is it, is it there?", "ring", "I see a ring"))
    ]
    features, at = torch.randn(9, 16), encode_positions((1, 3, 3))
    rows = [Row(w.question, features, at, w.direct, len(w.direct) - 1) for w in (write(i, tokenizer) for i in items)]
    with torch.no_grad():
        loss = float(answer_loss(language, rows))
        alone = -float(language.log_probs(rows).sum()) / sum(r.scored for r in rows)
    assert loss == pytest.approx(alone, abs=1e-4)
    written = write(items[1], tokenizer)
    reasoned = Row(written.question, features, at, written.reasoned, len(written.reasoned) - 1)
    said = Row(written.question, features, at, written.reasoned, len(written.direct) - 1)
    with torch.no_grad():  # an answer's token counts three times
        both, answer = (-float(language.log_probs([row])[0]) for row in (reasoned, said))
        n, m = reasoned.scored, said.scored
        assert float(answer_loss(language, [reasoned])) == pytest.approx((both + 2 * answer) / (n + 2 * m), abs=1e-4)


def test_what_is_written_has_the_form_that_is_read() -> None:
    tokenizer = train_tokenizer(["Is there a nodule? I see a nodule. yes no"] * 3, size=400)
    with_reason = write(Item(0, Question("Is there a nodule?"), "yes", "I see a nodule.", "", ""), tokenizer)
    assert [t for t in with_reason.question if t < 6] == [QUESTION]
    assert [t for t in with_reason.reasoned if t < 6] == [THINK, END_THINK, ANSWER, END_ANSWER]
    assert [t for t in with_reason.direct if t < 6] == [ANSWER, END_ANSWER]
    none = write(Item(0, Question("Is there a nodule?"), "yes", "", "", ""), tokenizer)
    assert none.reasoned[:2] == [THINK, END_THINK]


def test_subsets_are_salient_first_then_of_every_kind() -> None:
    saliency = torch.zeros(576)
    saliency[200:220] = 8
    rng = np.random.default_rng(0)
    early = [subset(saliency, (1, 24, 24), 40, rng, 0.1) for _ in range(50)]
    late = [subset(saliency, (1, 24, 24), 40, rng, 0.9) for _ in range(400)]
    held = [np.isin(np.arange(200, 220), s).mean() for s in late]
    assert np.mean([np.isin(np.arange(200, 220), s).mean() for s in early]) > 0.9
    assert 0.01 < np.mean([len(s) == 0 for s in late]) < 0.07
    assert 0.04 < np.mean([0 < h < 0.4 for h in held]) < 0.4  # random ones
    assert np.mean([h > 0.8 for h in held]) > 0.5
    assert all(len(s.unique()) == len(s) and torch.equal(s, s.sort().values) for s in late)
    assert len(subset(saliency, (1, 24, 24), 900, rng, 0.1)) == 576


@pytest.mark.parametrize("by_question", [False, True])
def test_a_mixture_draws_images_or_questions_alike_and_never_more_tokens_than_one_image_has(by_question: bool) -> None:
    pool, tokenizer = (
        Pool(by_question=by_question),
        train_tokenizer(["Is there a ring? Where is it? yes no"] * 3, size=400),
    )
    pairs = Simulator(PRESETS["pair"])
    for index in range(2):
        pool.add(pairs.scene("train", index).cases, "sim pair")
    first = pool.items[0]  # of image 0; image 1 is asked nine times as often
    pool.items = [first] + 9 * [replace(first, image=1)]
    pool.features = [torch.full((1152, 4), float(index)).half() for index in range(2)]
    mixture = Mixture([(pool, 1.0)], lambda features: features.sum(-1), tokenizer)
    rng = np.random.default_rng(0)
    rows = [mixture.draw(rng, 0.5, 576) for _ in range(400)]
    of_second = np.mean([float(row.visual[0, 0]) for row in rows if len(row.visual)])
    assert of_second == pytest.approx(0.9 if by_question else 0.5, abs=0.08)
    batches = [mixture.batch(rng, progress, 2_000) for progress in (0.1, 0.5, 0.9) for _ in range(8)]
    assert max(len(row.visual) for rows in batches for row in rows) <= 576 < NanoReader.max_tokens


def test_pairs_change_the_run_of_the_language_stream_and_not_that_of_the_encoder(tmp_path: Path) -> None:
    def runs(size: Size) -> dict[str, str]:
        with mock.patch.dict(SIZES, {"tiny": size}):
            recipe = _Recipe(tmp_path, None, 0, "tiny", 1, lambda stage, done, total: None)
        recipe.handler.close()
        return recipe.runs

    tiny = SIZES["tiny"]
    before, after = runs(tiny), runs(replace(tiny, pairs=tiny.pairs + 1))
    assert before["encoder"] == after["encoder"]
    assert before["encoder"].startswith("seed 0 data False scenes 30 + 30 encoder of 160, ")
    assert before["encoder"].endswith(", 3 + 3 x 8 + 3 varied 0.6")
    assert before["language"] != after["language"]


def test_a_stage_resumes_at_the_same_bits_and_a_finished_one_is_not_run_again(tmp_path: Path) -> None:
    def run(path: Path, stop: int | None = None) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        module, steps = torch.nn.Linear(3, 1), [0]

        def loss_of(step: int, rng: np.random.Generator) -> torch.Tensor:
            steps[0] += 1
            if step == stop:
                raise KeyboardInterrupt
            x = torch.from_numpy(rng.normal(size=(8, 3)).astype(np.float32))
            return (module(x) - x.sum(1, keepdim=True)).square().mean()

        common = {"steps": 120, "lr": 0.05, "warm": 10, "seed": 1, "run": "r", "on_step": lambda *a: None}
        fit(module, loss_of, checkpoint=path, **common)
        return module.weight.detach().clone(), steps[0]

    straight, _ = run(tmp_path / "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.safetensors", stop=70)
    resumed, steps = run(tmp_path / "b.safetensors")
    assert steps == 70  # from the checkpoint at 50
    assert torch.equal(straight, resumed)
    again, steps = run(tmp_path / "b.safetensors")
    assert steps == 0
    assert torch.equal(again, straight)


class _NoGradient(torch.autograd.Function):
    """Itself forward; backward, not a number."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_a_number_stops_the_stage_before_it_reaches_weights_or_checkpoint(tmp_path: Path, what: str) -> None:
    """At step 99, whose weights would be saved: a checkpoint of them could never be resumed."""
    torch.manual_seed(0)
    module, path, done = torch.nn.Linear(2, 1), tmp_path / "c.safetensors", []

    def loss_of(step: int, rng: np.random.Generator) -> torch.Tensor:
        out = module(torch.ones(1, 2)).square().sum()
        if step < 99:
            return out
        return out * float("nan") if what == "loss" else _NoGradient.apply(out)

    common = {"steps": 120, "lr": 0.01, "warm": 1, "seed": 0, "run": "r", "checkpoint": path}
    with pytest.raises(TrainingError, match=f"a {what} that is not a number at step 99"):
        fit(module, loss_of, on_step=lambda *step: done.append(step[0]), **common)
    assert done[-1] == 99
    assert all(torch.isfinite(p).all() for p in module.parameters())
    again: list[int] = []
    fit(module, lambda *_: module(torch.ones(1, 2)).square().sum(), on_step=lambda *s: again.append(s[0]), **common)
    assert again[0] == 51
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_fresh_policy_ranks_as_the_encoder_does_where_one_finding_stands_out(reader_folder: Path) -> None:
    reader = load_reader(reader_folder)
    assert isinstance(reader, NanoReader)
    tokens = torch.randn(40, reader.encoder.width, generator=torch.Generator().manual_seed(0))
    odds = SOFTENED * 5 * torch.eye(2)[torch.arange(40) % 2] * torch.linspace(0, 1, 40)[:, None]
    kinds = torch.linalg.pinv(reader.encoder.logits.weight[:2].detach())
    tokens[:, : reader.encoder.channels] = (odds - reader.encoder.logits.bias[:2].detach()) @ kinds.T
    grid = TokenGrid(tokens, (1, 5, 8), (8.0, 8.0, 1.0), np.eye(4), np.eye(4), reader.id)
    scores = PolicySelector(fresh_policy(reader), reader).scores(grid, Question("Is there a ring?"))
    assert torch.equal(scores[8:].argsort(), reader.saliency(grid)[8:].argsort())
