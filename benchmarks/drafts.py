"""Decode with draft tokens beside the same answers without them, in turns in one process.

    python -m benchmarks.drafts MODEL.gguf [--draft-model SMALL.gguf] [--agreement 0.7 ...] [--rounds 5] [--tokens 128]
        [--cases edit edit-again letter letter-again ...]
    python -m benchmarks.drafts SCRIPTED.gguf --cases words words-again [--rounds 5] [--tokens 128]

Without a draft model: prompt lookup on texts to be edited (a text to be corrected, a letter with many typos, a
paragraph in wrong grammar, code in which a variable is to be renamed), on a second, similar edit of each, and on a
story. ``words`` is an edit whose answer is known, for a file by ``benchmarks.scripted_model``: one word of 16 is
misspelled in the prompt, is missing there or is too much. Before ``words-again`` an earlier text had the answer but for
one word of 48. With a draft model: free text. ``--agreement`` replaces its choices by the right token with this
probability and by a wrong one otherwise, so that models with random weights can be measured; its passes are computed
all the same. Prints a table of ratios; nothing else should run.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import gguf

from benchmarks.scripted_model import REST, script, tokens_like
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
CHANGED, CHANGED_AGAIN = 16, 48
"""Words, on average, of which one is changed."""
UNUSED = 1024
"""Words at the end of a script that no answer has."""

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
WORDS = {"words": "words to be corrected", "words-again": "another edit of them"}


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


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft-model", type=Path)
    parser.add_argument("--agreement", type=float, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *WORDS], default=[*CASES])
    args = parser.parse_args(given)
    draft = None if args.draft_model is None else ModelSource(None, args.draft_model, None, None)
    options = LoadOptions(threads=args.threads, prefix_cache_n=0, max_seqs=8, draft_model=draft)
    print("| | without, tokens/s | with | ratio (least) | accepted of drafted |\n| --- | --- | --- | --- | --- |")
    with LocalModel.load(ModelSource(None, args.model, None, None), options) as model:
        if draft is None:
            compare_lookup(model, args.cases, args.model, rounds=args.rounds, tokens=args.tokens)
        else:
            compare_models(model, args.rounds, tokens=args.tokens, agreements=args.agreement)


def compare_lookup(model: LocalModel, cases: Sequence[str], path: Path, *, rounds: int, tokens: int) -> None:
    """Each round has texts of its own, as otherwise every answer would be in a text before."""
    for case in cases:
        words = Words(path, rounds, tokens) if case in WORDS else None
        name, asked = (WORDS[case], ()) if words is not None else CASES[case]
        pairs = []
        for number in range(rounds):
            forget(model)
            if words is None:
                prompts = [chat(model, f"{text}\n" + "." * number) for text in asked]
            else:
                prompts = words.prompts(number, again=case == "words-again")
            for prompt in prompts:
                pair = answer(model, prompt, tokens, drafts=False), answer(model, prompt, tokens, drafts=True)
            if words is not None and pair[0][1] != words.answer(number):
                raise SystemExit(f"{path.name} was not written by benchmarks.scripted_model")
            pairs.append(pair)
        report(name, pairs)


class Words:
    """Edits whose answer is the next part of the script of a file by ``benchmarks.scripted_model``."""

    def __init__(self, path: Path, rounds: int, tokens: int) -> None:
        reader = gguf.GGUFReader(path)
        self._script, self._rests, self._tokens = script(reader), tokens_like(REST, reader), tokens
        if rounds * tokens > len(self._script) - UNUSED - tokens:
            raise SystemExit(f"{path.name} knows {len(self._script)} words, too few for {rounds} rounds of {tokens}")

    def answer(self, number: int) -> list[int]:
        """Returns the words of a round."""
        start = 1 + number * self._tokens
        return self._script[start : start + self._tokens]

    def prompts(self, number: int, *, again: bool) -> list[tuple[int, ...]]:
        """Returns the prompt that the words of a round answer, and before it the earlier text, if there is one."""
        words, random_ = self.answer(number), random.Random(number)
        prompts = [(*self._changed(words, CHANGED, random_), self._script[number * self._tokens])]
        if again:
            elsewhere = self._script[-UNUSED - self._tokens]  # its own answer has none of these words
            prompts.insert(0, (*self._changed(words, CHANGED_AGAIN, random_), elsewhere))
        return prompts

    def _changed(self, words: list[int], every: int, random_: random.Random) -> list[int]:
        """Returns a text with a word of so many misspelled, which half of the changes are, left out or added."""
        text: list[int] = []
        unused = self._script[-UNUSED:]
        change = random_.randint(every // 2, every * 3 // 2)
        for place, word in enumerate(words):
            if place < change:
                text.append(word)
                continue
            kind = random_.choice(("misspelled", "misspelled", "missing", "added"))
            if kind == "misspelled":
                text += [random_.choice(unused), *random_.choices(self._rests, k=random_.randint(1, 2))]
            elif kind == "added":
                text += [random_.choice(unused), word]
            change += random_.randint(every // 2, every * 3 // 2)
        return text


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
