"""
English-German sentence pairs from a small grammar with real agreement.

The German side is a function of the English side: words with two translations are left out unless the sentence
decides between them. Translating well takes more than a dictionary: gender, case, adjective endings, verb position,
separable verbs and the choice of the auxiliary all depend on words far apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from . import lexicon as lex
from .clauses import (
    Clause,
    english_clause,
    english_infinitive,
    english_question,
    german_infinitive,
    german_main,
    german_question,
    german_subordinate,
)
from .nominals import NounPhrase, Pronoun
from .sampler import Sampler

Pair = tuple[str, str]

_MIN_WORDS, _MAX_WORDS = 4, 9
_CONJUNCTIONS = (("because", "weil"), ("because", "weil"), ("although", "obwohl"), ("if", "wenn"), ("while", "während"))
_PAST_CONJUNCTIONS = (("because", "weil"), ("although", "obwohl"))
_PRESENT_TENSES = ("present", "present", "present", "can", "must", "want to")
_PAST_TENSES = ("past", "past", "had to", "wanted to")
_QUESTION_TENSES = ("present", "present", "past", "past", "can", "must", "should", "will", "want to")


def sentence_pairs(seed: int) -> Iterator[Pair]:
    """Endless stream of (English, German) sentences, the same for the same seed everywhere."""
    sampler = Sampler(random.Random(seed))
    makers = (_statement,) * 10 + (_question,) * 3 + (_linked,) * 4 + (_reported,) * 2 + (_relative,) * 2 + (_purpose,)
    while True:
        pair = sampler.pick(makers)(sampler)
        if all(_MIN_WORDS <= len(side.split()) <= _MAX_WORDS for side in pair):
            yield pair


def _statement(sampler: Sampler) -> Pair:
    clause = sampler.clause()
    return _declarative(clause, clause.time is not None and (clause.negated or sampler.chance(0.6)))


def _declarative(clause: Clause, front: bool) -> Pair:
    german = german_main(clause, clause.time[1] if front and clause.time else "")
    return _finish(english_clause(clause, front), german)


def _question(sampler: Sampler) -> Pair:
    clause = sampler.clause(tenses=_QUESTION_TENSES, adjuncts=False)
    if isinstance(clause.subject, NounPhrase) and clause.subject.det == "no":
        clause = replace(clause, subject=replace(clause.subject, det="the"))
    clause = replace(clause, negated=False)
    words = (("", ""), ("", ""), ("why", "warum"), ("when", "wann"))
    english, german = sampler.pick(words + ((("where", "wo"),) if clause.place is None else ()))
    if clause.verb.en == "be" and english in ("when", "where"):
        english, german = "why", "warum"
    return _finish(english_question(clause, english), german_question(clause, german), "?")


def _linked(sampler: Sampler) -> Pair:
    """A main and a subordinate clause, often with a pronoun that refers back."""
    past = sampler.chance(0.35)
    tenses = _PAST_TENSES if past else _PRESENT_TENSES
    first = sampler.clause(tenses=tenses, adjuncts=False)
    english, german = sampler.pick(_PAST_CONJUNCTIONS if past else _CONJUNCTIONS)
    second = _continuation(sampler, first, tenses)
    if sampler.chance(0.35):
        english_text = f"{english} {english_clause(first)}, {english_clause(second)}"
        return _finish(english_text, _with_fronted_clause(german_subordinate(first, german), second))
    english_text = f"{english_clause(first)} {english} {english_clause(second)}"
    return _finish(english_text, f"{german_main(first)}, {german_subordinate(second, german)}")


def _with_fronted_clause(subordinate: str, main: Clause) -> str:
    """A fronted subordinate clause fills the first position, so the finite verb of the main clause follows it."""
    return german_main(main, subordinate + ",")


def _continuation(sampler: Sampler, first: Clause, tenses: tuple[str, ...]) -> Clause:
    """The second clause; *it* is used only where the first clause has exactly one phrase it can refer to."""
    nominals = (first.subject, *(nominal for nominal, _ in first.objects))
    things = [phrase for phrase in nominals if isinstance(phrase, NounPhrase) and _is_it(phrase)]
    tense = "past" if "past" in tenses else "present"
    hidden = first.place is not None or (first.predicate is not None and " than " in first.predicate[0])
    if len(things) == 1 and not hidden and sampler.chance(0.7):
        pronoun = cast(Pronoun, things[0].pronoun())  # What _is_it accepts has one.
        if things[0] is not first.subject:
            return Clause(pronoun, lex.BE, tense, predicate=sampler.predicate(pronoun, things[0].noun.kind))
        return sampler.clause(pronoun, tenses, adjuncts=False)
    subject = first.subject
    if isinstance(subject, NounPhrase) and subject.det not in ("no", "every"):
        referring = subject.pronoun()
        if referring is not None and referring.en != "it" and subject.noun.kind != "animal" and sampler.chance(0.6):
            return sampler.clause(referring, tenses, adjuncts=False)
    return sampler.clause(None, tenses, adjuncts=False)


def _is_it(phrase: NounPhrase) -> bool:
    pronoun = phrase.pronoun()
    return pronoun is not None and pronoun.en == "it" and phrase.det not in ("no", "every")


def _reported(sampler: Sampler) -> Pair:
    past = sampler.chance(0.4)
    subject = sampler.subject()
    main = Clause(subject, sampler.pick(lex.THAT_VERBS), "past" if past else "present")
    content = sampler.clause(tenses=_PAST_TENSES if past else _PRESENT_TENSES + ("past", "will"), adjuncts=False)
    english = f"{english_clause(main)} that {english_clause(content)}"
    return _finish(english, f"{german_main(main)}, {german_subordinate(content, 'dass')}")


def _relative(sampler: Sampler) -> Pair:
    """A statement whose subject or object carries a relative clause."""
    clause = replace(sampler.clause(adjuncts=False), negated=False)
    head, case = clause.objects[-1] if clause.objects else (None, "")
    if isinstance(head, NounPhrase) and sampler.chance(0.5):
        objects = (*clause.objects[:-1], (_with_relative(sampler, head), case))
        return _declarative(replace(clause, objects=objects), False)
    if isinstance(clause.subject, Pronoun):
        return _declarative(clause, False)
    return _declarative(replace(clause, subject=_with_relative(sampler, clause.subject)), False)


def _with_relative(sampler: Sampler, head: NounPhrase) -> NounPhrase:
    head = replace(head, det="the" if head.det in ("", "no") else head.det, adjective=None)
    people, living = head.noun.kind in ("man", "woman", "child"), head.noun.kind in ("man", "woman", "child", "animal")
    if living and sampler.chance(0.6):
        clause = replace(sampler.clause(head, ("present", "past"), adjuncts=False), negated=False)
        english, german = head.relative_pronoun("nom")
        relative = english_clause(clause, subject=english), german_subordinate(clause, german, with_subject=False)
        return replace(head, relative=relative)
    verbs, case = (lex.DATIVE, "dat") if people and sampler.chance(0.4) else (_verbs_for(head), "acc")
    clause = Clause(sampler.subject(), sampler.pick(verbs), sampler.pick(("present", "past")))
    clause = clause if clause.verb.en_past else replace(clause, tense="present")
    english, german = head.relative_pronoun(case)
    return replace(head, relative=(f"{english} {english_clause(clause)}", german_subordinate(clause, german)))


def _verbs_for(head: NounPhrase) -> tuple[lex.Verb, ...]:
    return next(verbs for verbs, nouns in lex.TRANSITIVE if head.noun in nouns)


def _purpose(sampler: Sampler) -> Pair:
    """Verbs with an infinitive group: *versucht, ... zu ...*."""
    subject = sampler.subject()
    main = Clause(subject, sampler.pick(lex.TO_VERBS), sampler.pick(("present", "past")))
    content = replace(sampler.clause(subject, ("present",), adjuncts=False), negated=False)
    english = f"{english_clause(main)} {english_infinitive(content)}"
    return _finish(english, f"{german_main(main)}, {german_infinitive(content)}")


def _finish(english: str, german: str, mark: str = ".") -> Pair:
    return _punctuate(english, mark), _punctuate(german, mark)


def _punctuate(text: str, mark: str) -> str:
    text = re.sub(r"[ ,]*,", ",", text).rstrip(", ")
    return text[0].upper() + text[1:] + mark
