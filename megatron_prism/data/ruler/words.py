"""Built-in English words: keys of needles are adjective-noun pairs, the same on every machine."""

from __future__ import annotations

from functools import cache

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
    """Every adjective-noun pair, as 'quiet-harbor'."""
    return tuple(f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS)
