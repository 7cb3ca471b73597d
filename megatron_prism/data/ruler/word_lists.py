"""Word tasks: common words (ten words are frequent in a numbered list) and frequent words (made-up words whose
frequencies follow a power law).

Also the built-in English words, the same on every machine. The keys of needles are adjective-noun pairs of them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from megatron_prism.data.ruler.drafts import BUILT_IN, Draft, shuffled
from megatron_prism.data.ruler.tasks import CommonWordsTask, FrequentWordsTask

_ADJECTIVES = """
able ancient amber angry arctic ashen awake bashful basic bitter blank bold brave brief bright brisk broad calm
careful cheap cheerful chief civil clean clear clever cold common cool coral cozy crisp cruel curious damp daring
dark deep dense direct distant dizzy double dry dull dusty eager early earnest easy elder empty entire equal exact
extra faint fair faithful famous fancy fast fearless fierce final firm fixed flat fond formal frank free fresh
frosty full funny gentle giant glad golden grand gray great green happy hard harsh hasty heavy hidden hollow honest
huge humble icy idle inner jolly keen kind large late lazy light little lively local lonely long loose loud loyal
lucky mellow mighty mild minor modern modest narrow neat nervous new nimble noble noisy odd old open orange pale
patient plain polite proud pure quick quiet rapid rare raw ready rich rigid ripe rough round royal rural sad safe
salty secret sharp short shy silent silver simple sleepy slim slow small smart smooth soft solid sour spare steady
steep stiff strange strict strong sudden sunny sweet swift tall tame tender thick thin tidy tiny tough true urban
usual vague vast vivid warm wary wild wise witty wooden worthy yellow young
"""
_NOUNS = """
acorn anchor apple apron arrow autumn badge baker balcony barn basket beach beacon bear bell bench berry bird blanket
boat bottle branch bread bridge brook brush bucket butter button cabin candle canyon captain carpet castle cellar
chair cherry circle cliff clock cloud coat coin comet copper cottage cradle crane creek crown curtain daisy desert
desk diamond dolphin door dragon drum eagle engine falcon farmer feather fence ferry field finger flame flower
flute forest fountain fox garden gate ghost giraffe glacier glove goose grape guitar hammer harbor harvest hawk
helmet heron hill honey horse hotel island jacket jewel jungle kettle kitchen kite ladder lake lamp lantern leaf
lemon letter library lion lizard magnet maple market meadow melon mirror monkey moon mountain museum nail needle nest
ocean office olive orchard otter oven owl palace panda paper parrot pearl pencil pepper piano pillow pilot pine
planet pocket pond potato prairie puppet quarry rabbit raven ribbon river rocket roof rose sailor salmon sandal
saddle school shadow shell shovel singer slipper smoke spider spoon squirrel stable star statue stone storm summer
swan table teacher temple thunder tiger timber tower train tulip tunnel turtle valley velvet village violin wagon
walnut whale wheel willow window winter wizard wolf
"""
ADJECTIVES = tuple(sorted(set(_ADJECTIVES.split())))
NOUNS = tuple(sorted(set(_NOUNS.split())))


@cache
def pairs() -> tuple[str, ...]:
    """Every adjective-noun pair, such as 'quiet-harbor'."""
    return tuple(f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS)


# The worked example for short and long contexts: number of words, repeats of common words, repeats of the others.
SHORT_EXAMPLE, LONG_EXAMPLE = (20, 3, 1), (40, 10, 3)
# The most frequent "word" is noise; the task asks for the three after it.
DOTS = "..."
ANSWERS = 3
# Longer texts have no ties among the answers, unless alpha is near 1.
MAX_TIED_WORDS = 5000
# Number of terms of the zeta function that are summed; an integral approximates the rest.
ZETA_TERMS = 1000


class CommonWordsBuilder:
    """Drafts of the common-words task. A unit is a distinct word."""

    redraws = False

    def __init__(self, task: CommonWordsTask, words: Sequence[str], source: str, length: int) -> None:
        self.task = task
        self.source = source
        self._words = words
        short = length < task.short_length
        self._example = SHORT_EXAMPLE if short else LONG_EXAMPLE
        self._repeats = task.short_repeats if short else (task.common_repeats, task.uncommon_repeats)
        self.min_units = task.num_common + 1
        self.max_units: int | None = len(words)

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        words, *repeats = self._example
        example, common = self._listed(rng, min(words, len(self._words)), repeats)
        text, answers = self._listed(rng, units, self._repeats)
        prompt = self.task.prompt
        shown = f"{prompt.format(context=example)} {_numbered(common)}\n\n"
        return Draft(shown + prompt.format(context=text), answers, [])

    def _listed(self, rng: random.Random, words: int, repeats: Sequence[int]) -> tuple[str, list[str]]:
        drawn = rng.sample(self._words, words)
        common, others = drawn[: self.task.num_common], drawn[self.task.num_common :]
        return _numbered(shuffled(common * repeats[0] + others * repeats[1], rng)), common


class FrequentWordsBuilder:
    """Drafts of the frequent-words task. A unit is a word of the text, before counts are rounded down."""

    source = BUILT_IN
    max_units: int | None = None
    redraws = False

    def __init__(self, task: FrequentWordsTask, length: int) -> None:
        self.task = task
        self._vocabulary = max(ANSWERS + 2, length // task.tokens_per_word)
        zeta = sum(rank**-task.alpha for rank in range(1, ZETA_TERMS))
        zeta += (ZETA_TERMS - 0.5) ** (1 - task.alpha) / (task.alpha - 1)
        self._shares = [rank**-task.alpha / zeta for rank in range(1, self._vocabulary + 1)]
        self.min_units = 1 + max(units for units in range(MAX_TIED_WORDS) if not self._distinct(units))

    def draft(self, index: int, rng: random.Random, units: int) -> Draft:
        """See `Builder`."""
        counts = self._counts(units)
        words = [DOTS, *_made_up(rng, max(len(counts) - 1, ANSWERS), self.task.word_length)]
        row = [word for word, count in zip(words, counts, strict=False) for _ in range(count)]
        context = " ".join(shuffled(row, rng))
        return Draft(self.task.prompt.format(context=context), words[1 : 1 + ANSWERS], [])

    def _counts(self, units: int) -> list[int]:
        return [count for share in self._shares if (count := int(units * share))]

    def _distinct(self, units: int) -> bool:
        """Whether the dots, the answers and the word after them all have different counts."""
        counts = [int(units * share) for share in self._shares[: ANSWERS + 2]]
        return all(first > second for first, second in pairwise(counts))


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _made_up(rng: random.Random, count: int, letters: int) -> list[str]:
    """Distinct words of lower-case letters."""
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choices(string.ascii_lowercase, k=letters))] = None
    return list(words)
