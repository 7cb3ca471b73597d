"""Questions about documents: those with the answer among many others."""

from __future__ import annotations

import random
from itertools import chain

from megatron_prism.data.ruler.drafts import Draft, random_order
from megatron_prism.data.ruler.questions import QuestionSet
from megatron_prism.data.ruler.tasks import QuestionTask


class DocumentBuilder:
    """Drafts of a question task; a unit is a word of the documents nobody asks about, of which the last is cut.

    Sample `index` asks the same question at every length.
    """

    redraws = False
    fewest = 0

    def __init__(self, task: QuestionTask, questions: QuestionSet, seed: int) -> None:
        self.task = task
        self.source = questions.source
        self._set = questions
        self._sizes = [document.count(" ") + 1 for document in questions.documents]
        order = list(range(len(questions.questions)))
        random.Random(f"{seed}/{task.name}/questions").shuffle(order)
        self._order = order
        largest = max(sum(self._sizes[place] for place in question.gold) for question in questions.questions)
        self.most: int | None = sum(self._sizes) - largest

    @property
    def questions(self) -> int:
        """How many samples there can be."""
        return len(self._order)

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        documents = self._set.documents
        question = self._set.questions[self._order[index]]
        chosen = [(documents[place], True) for place in question.gold]
        used = set(question.gold)
        near = (question.related[place] for place in random_order(len(question.related), rng))
        for place in chain(near, random_order(len(documents), rng)):
            if units <= 0:
                break
            if place not in used:
                used.add(place)
                text = documents[place]
                if self._sizes[place] > units:
                    text = " ".join(text.split(" ")[:units])
                chosen.append((text, False))
                units -= self._sizes[place]
        rng.shuffle(chosen)
        context = "\n\n".join(f"Document {number}:\n{text}" for number, (text, _) in enumerate(chosen, 1))
        return Draft(
            self.task.prompt.format(context=context, query=question.text),
            list(question.answers),
            [round(place / len(chosen), 4) for place, (_, gold) in enumerate(chosen) if gold],
        )
