"""Decode with draft tokens beside the same answers without them, in turns in one process.

    python -m benchmarks.drafts MODEL.gguf [--draft-model SMALL.gguf] [--agreement 0.7 ...] [--rounds 5] [--tokens 128]
        [--cases edit edit-again letter letter-again ...]

Without a draft model: prompt lookup on texts to be edited (a text to be corrected, a letter with many typos, a
paragraph in wrong grammar, code in which a variable is to be renamed), on a second, similar edit of each, and on a
story. With one: free text. ``--agreement`` replaces the draft model's choices by the right token with this probability
and by a wrong one otherwise, so that models with random weights can be measured; its passes are computed all the same.
Prints a table of ratios; nothing else should run.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.draft_model import DraftModel
from mistralrs.engine.events import Delta, Finished, Usage
from mistralrs.engine.model_executor import ModelExecutor
from mistralrs.engine.recent_texts import RecentTexts
from mistralrs.ops.buffer import Buffer

TEXT = (
    "The harbour lies at the end of a narrow bay. Every morning the boats go out befor sunrise, and they come back at "
    "noon with cod, herring and crabs. The women of the village mend teh nets on the quay while the children count the "
    "baskets. In winter the bay freezes, the boats are drawn onto the beach, and the men repair their hulls with tar "
    "and oak. On the first day of spring the priest blesses the fleet, and everyone dances until late at night."
)
EDIT = f"Write this text again, with the spelling corrected:\n\n{TEXT}"
EDIT_AGAIN = f"Write this text again, with the spelling and the commas corrected:\n\n{TEXT}"
LETTER = """Correct the typos in this letter and answer with the whole letter:

Dear Mr Miller,

thank you for you letter of 3 March. We recieved the parts on Monday, but two of the boxes were damged and one was \
missing compleetly. Could you please send us a replacment before the end of the week? We need them for a machine wich \
has to be delivered to our custommer on Friday. I have atached pictures of the boxes.

The invoice of the first delivery was payed on 28 February. Please tell us if we should send the damaged parts back to \
you or if your driver will collect them.

Yours sincerly,
Anna Schmidt"""
CODE = """Rename the variable tmp to cleaned in this Python file and answer with the whole file:

```python
def read_table(path, sep=","):
    rows = []
    with open(path) as file:
        for line in file:
            tmp = line.rstrip("\\n")
            if not tmp:
                continue
            rows.append([cell.strip() for cell in tmp.split(sep)])
    return rows


def column(rows, index):
    tmp = []
    for row in rows:
        if index < len(row):
            tmp.append(row[index])
    return tmp
```"""
GRAMMAR = """Correct the grammar of this paragraph and write the whole paragraph again:

Yesterday we goes to the zoo with our childs. They seen lions, tiger and many monkey. My son were afraid of the snakes \
but my daughter like them. After lunch it begin to rain and we has to go home early. Next week we wants to visit the \
museum of natural history, where they has a skeleton of a whale."""
LETTER_AGAIN = LETTER.replace("Correct the typos", "Correct the typos and the commas")
GRAMMAR_AGAIN = GRAMMAR.replace("Correct the grammar", "Correct the grammar and the style")
CODE_AGAIN = CODE.replace("tmp to cleaned", "tmp to row")
STORY = "Tell me a story about a lighthouse."


CASES = {
    "edit": ("a text to be edited", (EDIT,)),
    "edit-again": ("another edit of it", (EDIT, EDIT_AGAIN)),
    "letter": ("a letter with typos", (LETTER,)),
    "letter-again": ("another edit of it", (LETTER, LETTER_AGAIN)),
    "grammar": ("a paragraph in wrong grammar", (GRAMMAR,)),
    "grammar-again": ("another edit of it", (GRAMMAR, GRAMMAR_AGAIN)),
    "code": ("a variable to be renamed", (CODE,)),
    "code-again": ("another name for it", (CODE, CODE_AGAIN)),
    "story": ("a story", (STORY,)),
}
"""A name and the questions of each case, of which the last is measured."""


class Agreeing:
    """A draft model that chooses the token of ``expected`` with a probability."""

    def __init__(self, drafting: DraftModel, agreement: float) -> None:
        self._drafting, self._inner, self._agreement = drafting, drafting._executor, agreement
        self.vocab_size = drafting.vocab_size
        self.expected: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def forward(self, batch: Batch, cancel_flag: CancelFlag) -> Buffer:
        """The logits of the draft model, with the chosen token far above the others."""
        logits = self._inner.forward(batch, cancel_flag)
        [text] = self._drafting._texts.values()
        for row, flat in enumerate(batch.logits_indices):
            place = text.start + batch.positions[flat] + 1
            right = self.expected[place] if place < len(self.expected) else 0
            is_right = random.Random(place).random() < self._agreement
            token = right if is_right else (right + 1) % self.vocab_size
            logits.values[row * logits.shape[1] + token] = 1e9
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft-model", type=Path)
    parser.add_argument("--agreement", type=float, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    args = parser.parse_args()
    draft = None if args.draft_model is None else ModelSource(None, args.draft_model, None, None)
    options = LoadOptions(threads=args.threads, prefix_cache_n=0, max_seqs=8, draft_model=draft)
    print("| | without, tokens/s | with | ratio (least) | accepted of drafted |\n| --- | --- | --- | --- | --- |")
    with LocalModel.load(ModelSource(None, args.model, None, None), options) as model:
        if draft is None:
            compare_lookup(model, args.cases, rounds=args.rounds, tokens=args.tokens)
        else:
            compare_models(model, args.rounds, tokens=args.tokens, agreements=args.agreement)


def compare_lookup(model: LocalModel, cases: Sequence[str], *, rounds: int, tokens: int) -> None:
    """Each round has texts of its own, as otherwise every answer would be in a text before."""
    for name, asked in (CASES[case] for case in cases):
        pairs = []
        for number in range(rounds):
            forget(model)
            for text in asked:
                prompt = chat(model, f"{text}\n" + "." * number)
                pair = answer(model, prompt, tokens, drafts=False), answer(model, prompt, tokens, drafts=True)
            pairs.append(pair)
        report(name, pairs)


def compare_models(model: LocalModel, rounds: int, *, tokens: int, agreements: Sequence[float]) -> None:
    """The draft model's own choices, or those with each agreement."""
    drafting = model.engine._core._draft_model
    assert drafting is not None
    inner: ModelExecutor = drafting._executor
    for agreement in agreements or [None]:
        pairs = []
        for number in range(rounds):
            prompt = chat(model, STORY + "." * number)
            first = answer(model, prompt, tokens, drafts=False)
            forget(model)
            if agreement is not None:
                drafting._executor = inner
                drafting._executor = agreeing = Agreeing(drafting, agreement)  # type: ignore[assignment]
                agreeing.expected = [*prompt, *first[1]]
            pairs.append((first, answer(model, prompt, tokens, drafts=True)))
        report("a draft model" if agreement is None else f"agreement of {agreement:.0%}", pairs)


def forget(model: LocalModel) -> None:
    """Drops the texts of earlier requests, in which every answer would be found."""
    model.engine._core._drafter._recent = RecentTexts()


Answer = tuple[Usage, list[int]]


def chat(model: LocalModel, text: str) -> tuple[int, ...]:
    return model.tokens_of([{"role": "user", "content": text}])


def answer(model: LocalModel, prompt: tuple[int, ...], tokens: int, *, drafts: bool) -> Answer:
    """A greedy answer of so many tokens, and its times, from the same weights with drafts and without."""
    model.engine._core.scheduler._proposes_drafts = drafts
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=False)
    *events, end = model.engine.submit(Request(prompt, sampling))
    if not isinstance(end, Finished):
        raise SystemExit(f"a request failed: {end}")
    return end.usage, [token for event in events if isinstance(event, Delta) for token in event.tokens]


def report(name: str, pairs: Sequence[tuple[Answer, Answer]]) -> None:
    for (_, expected), (_, found) in pairs:
        if expected != found:
            raise SystemExit(f"{name}: draft tokens changed the answer")
    speeds = [[(usage.completion_tokens - 1) / usage.completion_s for usage, _ in pair] for pair in pairs]
    ratios = [after / before for before, after in speeds]
    before, after = (statistics.median(side) for side in zip(*speeds, strict=True))
    used = [pair[1][0] for pair in pairs]
    accepted, drafted = (sum(getattr(usage, f"{what}_tokens") for usage in used) for what in ("accepted", "drafted"))
    print(
        f"| {name} | {before:.1f} | {after:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}) "
        f"| {accepted} of {drafted} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
