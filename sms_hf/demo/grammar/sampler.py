"""Random choice of words, noun phrases and clauses for the demo grammar."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from . import lexicon as lex
from .clauses import Clause
from .nominals import Nominal, NounPhrase, Pronoun, prepositional

T = TypeVar("T")

_SINGULAR = ("the",) * 9 + ("a",) * 5 + ("this",) * 3 + ("my", "my", "our", "his", "her", "their")
_PLURAL = ("the",) * 9 + (
    "",
    "",
    "these",
    "these",
    "two",
    "three",
    "four",
    "many",
    "many",
    "all",
    "my",
    "our",
    "his",
    "her",
)
_MASS = ("the",) * 4 + ("",) * 4 + ("this", "my", "our", "his", "her")
_SUBJECT_SINGULAR = _SINGULAR + ("every", "every", "no")
_PRONOUNS = ("I", "he", "she", "we", "they")
_TENSES = (
    ("present",) * 8
    + ("past",) * 5
    + ("can", "must", "should", "may", "will", "will", "want to", "wanted to", "had to")
)
_NEGATABLE = ("present", "past", "can", "should", "will", "want to")
_PAST = ("past", "wanted to", "had to")
_DIRECTIONS = (("into", "in", "acc"), ("to", "zu", "dat"), ("out of", "aus", "dat"), ("through", "durch", "acc"))
_RELATIONS = (("on", "auf"), ("under", "unter"), ("behind", "hinter"), ("next to", "neben"), ("in front of", "vor"))


class Sampler:
    """Draws grammatical parts with nothing but `rng.random()`, whose stream is the same on every Python version."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._rng.random() * len(options))]

    def noun_phrase(self, nouns: Sequence[lex.Noun], subject: bool = False, owner: Nominal | None = None) -> NounPhrase:
        """A noun phrase; `owner` is a subject that a possessive may refer back to."""
        noun = self.pick(nouns)
        plural = noun.countable and self.chance(0.3)
        dets = _PLURAL if plural else (_SUBJECT_SINGULAR if subject else _SINGULAR) if noun.countable else _MASS
        det, gender = self.pick(dets), "n"
        if owner is not None and self.chance(0.15):
            det, gender = _owned_by(owner)
        adjective = self.pick(lex.ADJECTIVES[noun.kind]) if self.chance(0.4) else None
        return NounPhrase(noun, det, plural, adjective, owner_gender=gender)

    def definite(self, nouns: Sequence[lex.Noun]) -> NounPhrase:
        """A short definite phrase, for places where German word order depends on definiteness."""
        phrase = self.noun_phrase(nouns)
        return replace(phrase, det="the", adjective=None)

    def subject(self, animals: bool = False) -> Nominal:
        if self.chance(0.3):
            return Pronoun(self.pick(_PRONOUNS))
        return self.noun_phrase(lex.ANIMALS if animals and self.chance(0.4) else lex.PEOPLE, subject=True)

    def person_object(self, owner: Nominal) -> Nominal:
        """A person as an object; a pronoun of the third person or one that differs from the subject."""
        if self.chance(0.25):
            name = self.pick(_PRONOUNS)
            if not (isinstance(owner, Pronoun) and owner.en in (name, "I", "we")) or name in ("he", "she", "they"):
                return Pronoun(name)
        return self.noun_phrase(lex.PEOPLE, owner=owner)

    def location(self) -> tuple[str, str]:
        return prepositional("in", "in", self.noun_phrase(lex.PLACES), "dat")

    def clause(self, subject: Nominal | None = None, tenses: Sequence[str] = _TENSES, adjuncts: bool = True) -> Clause:
        """A clause about `subject` with tense, negation and adverbials."""
        core = self._core(subject)
        tense = self.pick(tenses)
        if tense == "past" and not core.verb.en_past:
            tense = "present" if "present" in tenses else "had to"
        core = replace(core, tense=tense)
        if self._negatable(core) and self.chance(0.14):
            core = replace(core, negated=True)
        return self._with_adverbials(core) if adjuncts else core

    def time(self, tense: str) -> tuple[str, str]:
        return self.pick(lex.TIMES["past" if tense in _PAST else "future" if tense == "will" else "present"])

    def predicate(self, subject: Nominal, kind: str) -> tuple[str, str]:
        """An adjective or a comparison after *be*."""
        adjective = self.pick(lex.ADJECTIVES[kind])
        if adjective.en_comparative is None or self.chance(0.6):
            return adjective.en, adjective.de
        others = [noun for noun in lex.PEOPLE + lex.ANIMALS if (noun.kind == "animal") == (kind == "animal")]
        if kind not in ("man", "woman", "child", "animal"):
            return adjective.en, adjective.de
        other = self.definite(others)
        en, de = other.english(), other.german("nom")
        return f"{adjective.en_comparative} than {en}", f"{adjective.de_comparative} als {de}"

    def _negatable(self, clause: Clause) -> bool:
        nominals = [nominal for nominal, _ in clause.objects]
        phrases = [nominal for nominal in (clause.subject, *nominals) if isinstance(nominal, NounPhrase)]
        plain = ("the", "a", "", "this", "these", "my", "our", "his", "her", "their", "its")
        if clause.tense not in _NEGATABLE or any(phrase.det not in plain for phrase in phrases):
            return False
        return len(nominals) < 2 or not (isinstance(nominals[0], NounPhrase) and nominals[0].indefinite)

    def _with_adverbials(self, clause: Clause) -> Clause:
        if not clause.negated and clause.tense in ("present", "past") and self.chance(0.15):
            without_no = isinstance(clause.subject, Pronoun) or clause.subject.det != "no"
            return replace(clause, frequency=self.pick(lex.FREQUENCIES if without_no else lex.FREQUENCIES[:2]))
        return replace(clause, time=self.time(clause.tense)) if self.chance(0.45) else clause

    def _core(self, subject: Nominal | None) -> Clause:
        animal = subject is not None and _is_animal(subject)
        builders = (self._intransitive,) * 4 + (self._motion,) * 2 + (self._position, self._copula, self._copula)
        builders += (self._animal_acts,) * 2 if animal else (self._animal_acts,)
        if not animal:
            builders += (self._transitive,) * 9 + (self._dative,) * 3 + (self._giving,) * 3
            builders += (self._placement, self._having)
        return self.pick(builders)(subject)

    def _intransitive(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject(animals=True)
        verb = self.pick(lex.INTRANSITIVE_ANIMAL if _is_animal(subject) else lex.INTRANSITIVE)
        return Clause(subject, verb, place=self.location() if self.chance(0.4) else None)

    def _transitive(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject()
        verbs, nouns = self.pick(lex.TRANSITIVE)
        verb = self.pick(verbs)
        people = nouns is lex.PEOPLE
        target = self.person_object(subject) if people else self.noun_phrase(nouns, owner=subject)
        place = None
        if self.chance(0.15):
            place = self.location() if people else prepositional("for", "für", self.definite(lex.PEOPLE), "acc")
        return Clause(subject, verb, objects=((target, "acc"),), place=place)

    def _animal_acts(self, subject: Nominal | None) -> Clause:
        subject = subject or self.noun_phrase(lex.ANIMALS, subject=True)
        target = self.noun_phrase(self.pick((lex.ANIMALS, lex.PEOPLE, lex.OBJECTS, lex.OBJECTS)), owner=subject)
        return Clause(subject, self.pick(lex.ANIMAL_ACTIONS), objects=((target, "acc"),))

    def _dative(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject()
        return Clause(subject, self.pick(lex.DATIVE), objects=((self.person_object(subject), "dat"),))

    def _giving(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject()
        receiver, gift = self.person_object(subject), self.noun_phrase(lex.GIFTS, owner=subject)
        return Clause(subject, self.pick(lex.GIVING), objects=((receiver, "dat"), (gift, "acc")))

    def _having(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject()
        thing = self.noun_phrase(lex.OBJECTS + lex.VEHICLES + lex.ANIMALS)
        return Clause(subject, lex.HAVE, objects=((replace(thing, det="" if thing.plural else "a"), "acc"),))

    def _copula(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject(animals=True)
        return Clause(subject, lex.BE, predicate=self.predicate(subject, _kind(subject)))

    def _motion(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject(animals=True)
        english, german, case = self.pick(_DIRECTIONS)
        place = prepositional(english, german, self.noun_phrase(lex.PLACES), case)
        return Clause(subject, self.pick(lex.MOTION), place=place)

    def _position(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject(animals=True)
        return Clause(subject, self.pick(lex.POSITION), place=self._relation("dat"))

    def _placement(self, subject: Nominal | None) -> Clause:
        subject = subject or self.subject()
        thing = self.noun_phrase(lex.OBJECTS, owner=subject)
        return Clause(subject, self.pick(lex.PLACEMENT), objects=((thing, "acc"),), place=self._relation("acc"))

    def _relation(self, case: str) -> tuple[str, str]:
        english, german = self.pick(_RELATIONS)
        return prepositional(english, german, self.noun_phrase(lex.FURNITURE), case)


def _kind(subject: Nominal) -> str:
    if isinstance(subject, Pronoun):
        return "animal" if subject.en == "it" else "man"
    return subject.noun.kind


def _is_animal(subject: Nominal) -> bool:
    return _kind(subject) == "animal"


def _owned_by(owner: Nominal) -> tuple[str, str]:
    """Possessive determiner that refers to `owner`, with the gender that *its* stands for."""
    pronoun = owner if isinstance(owner, Pronoun) else owner.pronoun()
    return (pronoun.owner, pronoun.gender) if pronoun else ("the", "n")
