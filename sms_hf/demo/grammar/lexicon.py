"""Parsed entries of the demo grammar's word tables."""

from __future__ import annotations

from dataclasses import dataclass

from . import nouns, words


@dataclass(frozen=True)
class Noun:
    """A noun with all the forms the grammar needs."""

    en: str
    en_plural: str
    de: str
    gender: str
    de_plural: str
    de_oblique: str
    kind: str

    @property
    def countable(self) -> bool:
        """Whether the noun has a plural and takes the indefinite article."""
        return self.en_plural != "-"


@dataclass(frozen=True)
class Adjective:
    """An adjective: `de` after a copula, `de_stem` before an ending."""

    en: str
    de: str
    de_stem: str
    en_comparative: str | None = None
    de_comparative: str | None = None


@dataclass(frozen=True)
class Verb:
    """A verb; `prefix` is the separable prefix, `third` the third person singular without it."""

    en: str
    en_past: str
    infinitive: str
    prefix: str
    third: str
    participle: str
    with_sein: bool

    @property
    def first(self) -> str:
        """First person singular without the separable prefix."""
        stem = self.infinitive
        if stem in words.FIRST_PERSON:
            return words.FIRST_PERSON[stem]
        if stem.endswith("eln"):
            return stem[:-3] + "le"
        return stem[:-1] + "e" if stem.endswith("ern") else stem[:-1]

    @property
    def to_infinitive(self) -> str:
        """Infinitive with *zu*, which goes between a separable prefix and its verb."""
        return f"{self.prefix}zu{self.infinitive}" if self.prefix else f"zu {self.infinitive}"


def _rows(table: str) -> list[list[str]]:
    return [row.split() for row in table.split(";") if row.strip()]


def _nouns(table: str, kind: str) -> tuple[Noun, ...]:
    return tuple(_noun(row, kind) for row in _rows(table))


def _noun(row: list[str], kind: str) -> Noun:
    en, en_plural, de, gender, de_plural = row[:5]
    return Noun(en, en_plural, de, gender, de_plural, row[5] if len(row) > 5 else de, kind)


def _verbs(*tables: str) -> tuple[Verb, ...]:
    return tuple(_verb(row) for table in tables for row in _rows(table))


def _verb(row: list[str]) -> Verb:
    prefix, _, infinitive = row[2].rpartition("|")
    en, en_past = row[0].replace("_", " "), "" if row[1] == "-" else row[1].replace("_", " ")
    return Verb(en, en_past, infinitive, prefix, row[3], row[4], "s" in row[5:])


def _adjectives(*tables: str) -> tuple[Adjective, ...]:
    return tuple(_adjective(row) for table in tables for row in _rows(table))


def _adjective(row: list[str]) -> Adjective:
    stem = row[2] if len(row) > 2 and row[2] != "-" else row[1]
    return Adjective(row[0], row[1], stem, *row[3:5])


def _adverbials(table: str) -> tuple[tuple[str, str], ...]:
    pairs = [entry.split(" = ") for entry in table.split(";")]
    return tuple((en.strip(), de.strip()) for en, de in pairs)


MEN, WOMEN = _nouns(nouns.MEN, "man"), _nouns(nouns.WOMEN, "woman")
PEOPLE = MEN + WOMEN + _nouns(nouns.CHILDREN, "child")
ANIMALS = _nouns(nouns.ANIMALS, "animal")
FOOD, DRINKS = _nouns(nouns.FOOD, "food"), _nouns(nouns.DRINKS, "food")
TEXTS, CLOTHES = _nouns(nouns.TEXTS, "text"), _nouns(nouns.CLOTHES, "thing")
OBJECTS, DEVICES = _nouns(nouns.OBJECTS, "thing"), _nouns(nouns.DEVICES, "thing")
VEHICLES, FURNITURE = _nouns(nouns.VEHICLES, "thing"), _nouns(nouns.FURNITURE, "thing")
PLACES = _nouns(nouns.PLACES, "place")
GIFTS = TEXTS + CLOTHES + OBJECTS

_PERSON_ADJECTIVES = _adjectives(words.ADJ_LIVING, words.ADJ_HUMAN)
ADJECTIVES = {
    "man": _PERSON_ADJECTIVES,
    "woman": _PERSON_ADJECTIVES,
    "child": _PERSON_ADJECTIVES,
    "animal": _adjectives(words.ADJ_LIVING),
    "thing": _adjectives(words.ADJ_THING),
    "text": _adjectives(words.ADJ_TEXT),
    "food": _adjectives(words.ADJ_FOOD),
    "place": _adjectives(words.ADJ_PLACE),
}

INTRANSITIVE_ANIMAL = _verbs(words.VERBS_ANIMAL)
INTRANSITIVE = _verbs(words.VERBS_ANIMAL, words.VERBS_HUMAN)
# Which verbs take which accusative objects; the repetitions set how often a group is drawn.
TRANSITIVE = (
    (_verbs(words.VERBS_PERSON), PEOPLE),
    (_verbs(words.VERBS_PERSON), PEOPLE),
    (_verbs(words.VERBS_BEAST), ANIMALS),
    (_verbs(words.VERBS_FOOD), FOOD),
    (_verbs(words.VERBS_DRINK), DRINKS),
    (_verbs(words.VERBS_TEXT), TEXTS),
    (_verbs(words.VERBS_CLOTHES), CLOTHES),
    (_verbs(words.VERBS_DEVICE), DEVICES),
    (_verbs(words.VERBS_VEHICLE), VEHICLES),
    (_verbs(words.VERBS_THING), OBJECTS + DEVICES + CLOTHES),
    (_verbs(words.VERBS_THING), OBJECTS),
)
DATIVE, GIVING = _verbs(words.VERBS_DATIVE), _verbs(words.VERBS_GIVING)
ANIMAL_ACTIONS = _verbs(words.VERBS_ANIMAL_ACTION)
MOTION, POSITION = _verbs(words.VERBS_MOTION), _verbs(words.VERBS_POSITION)
PLACEMENT = _verbs(words.VERBS_PLACEMENT)
THAT_VERBS, TO_VERBS = _verbs(words.VERBS_THAT), _verbs(words.VERBS_TO)

BE = Verb("be", "was", "sein", "", "ist", "gewesen", True)
HAVE = Verb("have", "had", "haben", "", "hat", "gehabt", False)

TIMES = {
    "present": _adverbials(words.TIMES_PRESENT),
    "past": _adverbials(words.TIMES_PAST),
    "future": _adverbials(words.TIMES_FUTURE),
}
FREQUENCIES = _adverbials(words.FREQUENCIES)
