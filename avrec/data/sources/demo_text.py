"""The demo's titles and descriptions: template grammars with a vocabulary per domain, theme and tone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Words:
    """A domain's vocabulary; lists are separated by commas.

    Attributes:
        themes: by theme, the nouns.
        tones: by tone, the adjectives.
        titles: title templates.
        blurbs: description templates.
    """

    themes: tuple[str, ...]
    tones: tuple[str, ...]
    titles: tuple[str, ...]
    blurbs: tuple[str, ...]


_NAMES = (
    "Mara,Otto,Ines,Ravi,Lena,Tomas,Aiko,Bruno,Carmen,Dario,Edda,Farid,Greta,Hugo,Irma,"
    "Jonas,Kira,Luca,Mina,Nils,Olga,Pablo,Quinn,Rosa,Sami,Tilda,Uma,Viktor,Wanda,Yusuf"
)

_WORDS: Mapping[str, Words] = {
    "film": Words(
        themes=(
            "tide,harbour,lighthouse,trawler,reef,captain,storm,sailor,island",
            "orbit,starship,astronaut,comet,colony,airlock,galaxy,satellite,moonbase",
            "detective,heist,alibi,gangster,ransom,informant,verdict,burglar,witness",
            "saddle,sheriff,prairie,outlaw,ranch,stagecoach,canyon,cattle,revolver",
            "wedding,kiss,letter,sweetheart,bouquet,proposal,honeymoon,waltz,engagement",
            "trench,regiment,armistice,bunker,medic,battalion,siege,deserter,frontline",
            "ghost,mansion,seance,crypt,curse,graveyard,attic,phantom,exorcist",
            "boxer,coach,stadium,marathon,champion,referee,locker,underdog,tournament",
        ),
        tones=(
            "bleak,desolate,grim,sombre,mournful,wintry",
            "hilarious,madcap,silly,witty,riotous,goofy",
            "tender,gentle,warm,heartfelt,touching,soft",
            "tense,breathless,nervous,relentless,taut,gripping",
            "epic,sweeping,grand,majestic,towering,vast",
            "dreamlike,surreal,hazy,strange,hypnotic,floating",
        ),
        titles=(
            "The {Adj} {Noun}",
            "{Noun} and {Noun2}",
            "{Name}'s {Adj} {Noun}",
            "A {Noun} for {Name}",
            "The Last {Noun}",
            "{Adj} {Noun}, {Adj2} {Noun2}",
            "{Name} and the {Noun}",
        ),
        blurbs=(
            "A {adj} film in which {Name} finds a {noun} and loses a {noun2}. The ending is {adj2}.",
            "When the {noun} returns, {Name} has one night left to save the {noun2}: {adj} and {adj2} to the end.",
            "{Name} and {Name2} never meant to share a {noun}. A {adj} story of {noun2} and {noun3}, {adj2} at heart.",
            "Between {noun} and {noun2}, {Name} must choose. Critics called it {adj}, audiences {adj2}.",
            "In this {adj} debut, a {noun} and a {noun2} change the life of {Name2}. {Adj2} from the first scene.",
        ),
    ),
    "music": Words(
        themes=(
            "neon,taxi,rooftop,boulevard,subway,skyline,midnight,streetlight,downtown",
            "ocean,shoreline,wave,anchor,seashell,lagoon,saltwater,pier,current",
            "heartbreak,goodbye,tears,exes,divorce,loneliness,breakup,regret,farewell",
            "prayer,angel,gospel,chapel,heaven,psalm,grace,pilgrim,candle",
            "highway,engine,suitcase,motel,windshield,freight,milepost,diesel,runaway",
            "beach,sunshine,july,lemonade,bonfire,poolside,mango,picnic,barefoot",
            "robot,circuit,voltage,android,signal,cyborg,binary,laser,machine",
            "harvest,meadow,porch,orchard,homestead,barn,river,valley,wildflower",
        ),
        tones=(
            "melancholy,blue,wistful,aching,lonesome,downcast",
            "joyful,sunny,euphoric,giddy,jubilant,bright",
            "furious,raw,snarling,defiant,savage,bitter",
            "calm,drifting,hushed,weightless,serene,quiet",
            "ironic,sly,deadpan,cheeky,mocking,wry",
            "hopeful,rising,brave,soaring,uplifting,shining",
        ),
        titles=(
            "{Adj} {Noun}",
            "{Noun} ({Adj} Mix)",
            "{Noun} & {Noun2}",
            "My {Adj} {Noun}",
            "{Noun} Song for {Name}",
            "{Adj} {Noun} No. {number}",
            "Dancing with the {Noun}",
        ),
        blurbs=(
            "{Name} sings of {noun} and {noun2} on this {adj} single; the chorus stays {adj2}.",
            "Written in one {adj} night, the track turns a {noun} into a {adj2} refrain about {noun2}.",
            "A {adj} duet by {Name} and {Name2}, with {noun}, {noun2} and {noun3} in every verse.",
            "From the {adj2} second album of {Name}: {noun} on the outside, {noun2} within. {Adj} throughout.",
            "Lyrics about {noun} and {noun2}, delivered in a {adj} voice. Fans of {Name2} call it {adj2}.",
        ),
    ),
    "game": Words(
        themes=(
            "farm,turnip,barn,tractor,seedling,chicken,scarecrow,greenhouse,beehive",
            "dungeon,goblin,torch,paladin,mimic,necromancer,loot,catacomb,rune",
            "racetrack,turbo,drift,pitstop,lap,chassis,nitro,gearbox,rally",
            "asteroid,freighter,hyperdrive,trader,nebula,dock,cargo,outpost,thruster",
            "puzzle,lever,maze,tile,riddle,switch,cube,mirror,labyrinth",
            "survivor,shelter,wolfpack,blizzard,campfire,axe,hunger,wilderness,raft",
            "clue,suspect,notebook,fingerprint,inspector,motive,archive,cipher,confession",
            "striker,league,penalty,goalkeeper,dribble,midfield,kickoff,transfer,stadium",
        ),
        tones=(
            "cosy,gentle,relaxing,homely,mellow,snug",
            "brutal,punishing,merciless,gory,savage,unforgiving",
            "whimsical,wacky,quirky,absurd,playful,zany",
            "competitive,ranked,fast,skilful,adrenaline,sharp",
            "eerie,haunting,unsettling,ominous,creepy,shadowy",
            "heroic,legendary,valiant,mythic,glorious,fearless",
        ),
        titles=(
            "{Noun} Quest: {Adj} Edition",
            "{Adj} {Noun}",
            "{Noun} Simulator {number}",
            "Super {Noun} {number}",
            "{Noun} & {Noun2}",
            "{Name} and the {Adj} {Noun}",
            "{Noun}bound",
        ),
        blurbs=(
            "A {adj} game about one {noun}, many a {noun2} and the {adj2} road between them.",
            "Play as {Name}, master the {noun}, unlock the {noun2} and beat {Name2} in {adj} co-op.",
            "Over {number} levels of {noun} and {noun2}. {Adj}, {adj2} and made by a team of two.",
            "Build, trade and upgrade: every {noun} counts and every {noun2} hides a {noun3}. {Adj} to the core.",
            "{Name} returns in a {adj} sequel. New {noun}, bigger {noun2}, and a {adj2} final boss.",
        ),
    ),
    "course": Words(
        themes=(
            "python,function,loop,debugger,module,algorithm,recursion,compiler,variable",
            "regression,variance,probability,sampling,histogram,bayes,hypothesis,correlation,dataset",
            "sourdough,knife,sauce,pastry,seasoning,oven,dough,stock,recipe",
            "aperture,shutter,lens,tripod,exposure,portrait,darkroom,bokeh,composition",
            "budget,dividend,bond,mortgage,invoice,inflation,portfolio,ledger,tax",
            "grammar,vocabulary,pronunciation,dialogue,verb,idiom,spelling,translation,accent",
            "compost,pruning,perennial,trellis,mulch,seed,soil,herb,greenhouse",
            "empire,revolution,treaty,dynasty,archive,monarchy,reform,antiquity,parliament",
        ),
        tones=(
            "gentle,beginner,friendly,patient,easy,introductory",
            "rigorous,advanced,formal,proof-based,theoretical,in-depth",
            "hands-on,practical,project-based,workshop,applied,real-world",
            "quick,crash,express,weekend,condensed,bite-sized",
            "playful,illustrated,fun,storytelling,game-based,colourful",
            "exam-ready,certified,accredited,structured,graded,professional",
        ),
        titles=(
            "{Adj} {Noun} with {Name}",
            "{Noun} and {Noun2}: a {Adj} Course",
            "Understanding {Noun}",
            "From {Noun} to {Noun2}",
            "{Adj} {Noun} in {number} Lessons",
            "The {Adj} Guide to {Noun}",
            "{Noun} {number}01",
        ),
        blurbs=(
            "In this {adj} course {Name} explains {noun}, {noun2} and {noun3}. {Adj2} exercises every week.",
            "Learn {noun} step by step. A {adj} path of {number} units, ending with {noun2} and a {adj2} task.",
            "{Name} and {Name2} have taught {noun} for years; their {adj} lessons cover {noun2} as well.",
            "A {adj2} look at {noun}: what it is, why {noun2} matters, and how both fit together. {Adj} pace.",
            "{Adj} and {adj2}: {number} videos on {noun} and {noun2}, with feedback by {Name}.",
        ),
    ),
}


def theme_names(domain: str) -> list[str]:
    """Each theme by its first noun."""
    return [nouns.partition(",")[0] for nouns in _WORDS[domain].themes]


def write_text(domain: str, theme: int, tone: int, rng: np.random.Generator) -> tuple[str, str]:
    """A title and a description that tell the theme and the tone, and nothing else about the item."""
    words = _WORDS[domain]
    nouns = rng.permutation(words.themes[theme].split(","))
    adjectives = rng.permutation(words.tones[tone].split(","))
    slots = {f"noun{n or ''}": str(noun) for n, noun in zip((0, 2, 3), nouns[:3], strict=True)}
    slots |= {f"adj{n or ''}": str(adjective) for n, adjective in zip((0, 2), adjectives[:2], strict=True)}
    slots |= {slot.capitalize(): word.capitalize() for slot, word in slots.items()}
    names = rng.permutation(_NAMES.split(","))
    slots |= {"Name": str(names[0]), "Name2": str(names[1]), "number": str(rng.integers(2, 30))}
    title = words.titles[rng.integers(len(words.titles))].format(**slots)
    # The description says more than the title: other nouns of the same theme.
    slots |= {f"noun{n or ''}": str(noun) for n, noun in zip((0, 2, 3), nouns[2:5], strict=True)}
    blurb = words.blurbs[rng.integers(len(words.blurbs))].format(**slots)
    return _with_articles(title), _with_articles(blurb)


def _with_articles(text: str) -> str:
    """ "an" where a vowel sound follows."""
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni))(?!eu)", r"\1n ", text, flags=re.IGNORECASE)
