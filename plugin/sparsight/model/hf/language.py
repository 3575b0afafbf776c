"""The language stream of a Hugging Face model over kept tokens: read, write, and say how likely a text was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsight.model.completions import draw
from sparsight.model.hf.families import Family
from sparsight.model.hf.prompts import TokenPrompt, batch
from sparsight.model.hf.vision import memory_full
from sparsight.model.together import Behind


@dataclass(frozen=True, eq=False)
class Step:
    """One token of each of B texts, None for one that has ended, and the (B, V) logits it was chosen by."""

    ids: list[int | None]
    logits: Tensor


class Language:
    """Forward passes of one model over prompts (model.hf.prompts); features and positions as they were encoded.

    most: the largest number that any process names. Where the layers are spread over several, a forward pass needs all
    of them: who has nothing left to do goes along (`idle`) until the last one is done.
    """

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self.most: Callable[[int], int] = lambda n: n
        self.model, self.tokenizer, self.family = model, processor.tokenizer, family
        self.image = int(model.config.image_token_id)
        ends = model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
        self.ends = frozenset(int(end) for end in ends if end is not None)
        self.end = family.end(processor, self.ends)  # of an answer
        pad = self.tokenizer.pad_token_id
        self.pad = self.end if pad is None else int(pad)
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self.special = frozenset({*special, *self.ends, self.image}) - {self.tokenizer.unk_token_id}
        self.words = int(model.config.get_text_config().vocab_size)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text that stands inside another."""
        given: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return given

    def log_p(self, prompts: Sequence[TokenPrompt], texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Next-token distributions along given texts, teacher-forced: (B, T, V) log-probabilities, (B, T) which count.

        The last of a row are its own: rows are padded on the left. Gradients flow.
        """
        longest = max(len(text) for text in texts)
        followed = [p.then(text, self.family.answer_type) for p, text in zip(prompts, texts, strict=True)]
        out = self.model(**self.inputs(followed), logits_to_keep=longest + 1, use_cache=False)
        log_p = out.logits[:, :-1].float().log_softmax(-1)
        counts = torch.arange(longest).flip(0) < torch.tensor([len(text) for text in texts]).unsqueeze(1)
        return log_p, counts.to(log_p.device)

    def likely(self, prompts: Sequence[TokenPrompt], texts: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of each text after its prompt: (B,)."""
        log_p, counts = self.log_p(prompts, texts)
        said = torch.zeros(counts.shape, dtype=torch.long, device=log_p.device)
        for row, text in zip(said, texts, strict=True):
            row[len(row) - len(text) :] = torch.tensor(text, device=row.device)
        chosen = log_p.gather(-1, said.unsqueeze(-1)).squeeze(-1)
        return (chosen * counts).sum(-1)

    @torch.no_grad()
    def likely_after(self, prompt: TokenPrompt, texts: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of each of n texts after one prompt, which is read once: (n,)."""
        given = self.inputs([prompt])
        out = self.model(**given, logits_to_keep=1, use_cache=True)
        n, longest = len(texts), max(len(text) for text in texts)
        cache = out.past_key_values
        cache.batch_repeat_interleave(n)
        ids = torch.full((n, longest), self.pad, device=self.model.device)
        said = torch.zeros_like(ids)
        for row, counts, text in zip(ids, said, texts, strict=True):
            row[: len(text)] = torch.tensor(text, device=row.device)
            counts[: len(text)] = 1
        logits = out.logits[:, -1:].repeat_interleave(n, 0)
        if longest > 1:
            at = given["position_ids"][..., -1:] + torch.arange(1, longest, device=ids.device)
            mask = torch.cat([given["attention_mask"].repeat_interleave(n, 0), said[:, :-1]], dim=1)
            later = self.model(
                input_ids=ids[:, :-1],
                attention_mask=mask,
                position_ids=at.expand(*at.shape[:-2], n, longest - 1),
                past_key_values=cache,
                use_cache=True,
            )
            logits = torch.cat([logits, later.logits], dim=1)
        chosen = logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        likely: Tensor = (chosen * said).sum(-1)
        return likely

    @torch.no_grad()
    def attention(self, prompt: TokenPrompt, text: Sequence[int]) -> Tensor:
        """How much the places of a text look at each visual token before it: (r,), mean over layers, heads and places.

        The prompt is read as always; the text alone is read by plain attention, which has weights, layer by layer.
        """
        given = self.inputs([prompt])
        cache = self.model(**given, logits_to_keep=1, use_cache=True).past_key_values
        at = given["position_ids"][..., -1:] + torch.arange(1, len(text) + 1, device=self.model.device)
        mask = given["attention_mask"]
        visual = (given["input_ids"][0] == self.image).nonzero().squeeze(1)
        length = mask.shape[1] + len(text)
        found = list[Tensor]()

        def look(_: Any, __: Any, out: tuple[Tensor, Tensor]) -> None:
            by_place = (
                out[1][0].float().mean((0, 1))
            )  # of the last places of the prompt only, where a layer sees no more
            found.append(functional.pad(by_place, (length - len(by_place), 0))[visual])

        layers = [m for name, m in self.model.get_decoder().named_modules() if name.endswith("self_attn")]
        hooks = [layer.register_forward_hook(look) for layer in layers]
        usual = self.model.config.get_text_config()._attn_implementation
        self.model.set_attn_implementation({"text_config": "eager"})
        try:
            self.model(
                input_ids=torch.tensor([list(text)], device=self.model.device),
                attention_mask=torch.cat([mask, mask.new_ones(1, len(text))], dim=1),
                position_ids=at,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            self.model.set_attn_implementation({"text_config": usual})
            for hook in hooks:
                hook.remove()
        return torch.stack(found).mean(0).cpu()

    @torch.no_grad()
    def write(self, prompts: Sequence[TokenPrompt], limit: int, chance: Tensor | None = None) -> Iterator[Step]:
        """B texts token by token: greedy, or at temperature 1 by `chance` (completions.chances): (B, limit).

        The end of a text is given once, then None. No placeholder of an image is ever written.
        """
        behind = Behind.prompts(self.model, self.inputs(prompts), barred=self.image)
        alive = [True] * len(prompts)
        for step in range(limit):
            logits, allowed = behind.logits, behind.allowed()
            ids = allowed.argmax(-1) if chance is None else draw(allowed.softmax(-1), chance[:, step])
            said = ids.tolist()
            yield Step([token if lives else None for token, lives in zip(said, alive, strict=True)], logits)
            alive = [lives and token not in self.ends for token, lives in zip(said, alive, strict=True)]
            if step + 1 == limit or not self.most(any(alive)):
                return
            behind.follow(ids)

    def begin(self, prompt: TokenPrompt, said: Sequence[int] = ()) -> Behind:
        """Read a prompt and ids after it; what is written next is written behind it. Raises MemoryFullError."""
        whole = prompt.then(said, self.family.answer_type) if said else prompt
        return Behind.prompts(self.model, self.inputs([whole]), barred=self.image, guard=memory_full)

    @torch.no_grad()
    def idle(self) -> None:
        """One pass that nobody reads."""
        self.model.get_decoder()(input_ids=torch.tensor([[self.pad]], device=self.model.device), use_cache=False)

    def inputs(self, prompts: Sequence[TokenPrompt]) -> dict[str, Any]:
        """Arguments of the model's forward, on its device."""
        given = batch(prompts, self.pad, self.family.listed, self.model.dtype)
        device = self.model.device
        moved = {name: value.to(device) for name, value in given.items() if name != "mm_encoder_outputs"}
        if "mm_encoder_outputs" in given:
            moved["mm_encoder_outputs"] = {"image": _moved(given["mm_encoder_outputs"]["image"], device)}
        return moved


def _moved(value: Any, device: torch.device) -> Any:
    """The features of a vision tower's output, wherever they are nested, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(part, device) for part in value]
    return type(value)(**{name: _moved(part, device) for name, part in value.items()})
