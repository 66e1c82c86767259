"""Clauses of both languages: tense, modals, negation and the German verb positions."""

from __future__ import annotations

from dataclasses import dataclass

from .lexicon import Verb
from .nominals import Nominal, NounPhrase, Pronoun

# English, German first person singular, third person singular, plural.
MODALS = {
    "can": ("kann", "kann", "können"),
    "must": ("muss", "muss", "müssen"),
    "should": ("soll", "soll", "sollen"),
    "may": ("darf", "darf", "dürfen"),
    "will": ("werde", "wird", "werden"),
    "want to": ("will", "will", "wollen"),
    "wanted to": ("wollte", "wollte", "wollten"),
    "had to": ("musste", "musste", "mussten"),
}
_PERSONS = ("1s", "3s", "pl")
_SEIN = {"present": ("bin", "ist", "sind"), "past": ("war", "war", "waren")}
_HABEN = {"present": ("habe", "hat", "haben"), "past": ("hatte", "hatte", "hatten")}
_BE = {"present": ("am", "is", "are"), "past": ("was", "was", "were")}


@dataclass(frozen=True)
class Clause:
    """
    One clause; `tense` is `present`, `past` or a key of `MODALS`.

    `objects` holds (nominal, case) in English order, `place` and `predicate` close the German middle field,
    `time` is the only part that can stand in front.
    """

    subject: Nominal
    verb: Verb
    tense: str = "present"
    objects: tuple[tuple[Nominal, str], ...] = ()
    place: tuple[str, str] | None = None
    predicate: tuple[str, str] | None = None
    time: tuple[str, str] | None = None
    frequency: tuple[str, str] | None = None
    negated: bool = False


def english_clause(clause: Clause, front: bool = False, subject: str | None = None) -> str:
    """A statement; with `front` the time adverbial comes first, `subject` replaces the subject's own words."""
    auxiliary, head, rest = _english_verb(clause)
    if auxiliary in ("do", "does", "did") and not clause.negated:
        auxiliary, head = "", _conjugate(head, auxiliary, clause)
    negation = "not" if clause.negated else ""
    finite = "cannot" if (auxiliary, negation) == ("can", "not") else _join(auxiliary, negation)
    time = clause.time[0] if clause.time else ""
    subject = clause.subject.english(True) if subject is None else subject
    words = (subject, finite, _en(clause.frequency), head, rest)
    return _join(time if front else "", *words, "" if front else time)


def english_question(clause: Clause, word: str = "") -> str:
    """A yes/no question, or one that starts with the question word."""
    auxiliary, head, rest = _english_verb(clause)
    negation = "not" if clause.negated else ""
    return _join(
        word, auxiliary, clause.subject.english(True), negation, _en(clause.frequency), head, rest, _en(clause.time)
    )


def english_infinitive(clause: Clause) -> str:
    """The clause as an infinitive group without its subject."""
    _, head, rest = _english_verb(clause)
    return _join("to", head or clause.verb.en, rest, _en(clause.time))


def german_main(clause: Clause, front: str = "") -> str:
    """Verb-second order; `front` fills the first position, otherwise the subject does."""
    finite, prefix, tail = _german_verb(clause)
    middle = _middle(clause, front == _de(clause.time) != "")
    subject = clause.subject.german("nom")
    opening = (front, finite, subject) if front else (subject, finite)
    return _join(*opening, *middle, prefix, tail)


def german_question(clause: Clause, word: str = "") -> str:
    """Verb-first order, or verb-second after a question word."""
    finite, prefix, tail = _german_verb(clause)
    return _join(word, finite, clause.subject.german("nom"), *_middle(clause), prefix, tail)


def german_subordinate(clause: Clause, opener: str, with_subject: bool = True) -> str:
    """Verb-final order after a conjunction or a relative pronoun."""
    finite, prefix, tail = _german_verb(clause)
    subject = clause.subject.german("nom") if with_subject else ""
    return _join(opener, subject, *_middle(clause), tail, prefix + finite)


def german_infinitive(clause: Clause) -> str:
    """Infinitive group with *zu*."""
    return _join(*_middle(clause), clause.verb.to_infinitive)


def _english_verb(clause: Clause) -> tuple[str, str, str]:
    """Auxiliary as in a question, verb in its base form, and the complements."""
    complements = [nominal.english() for nominal, _ in clause.objects]
    rest = _join(*complements, _en(clause.predicate), _en(clause.place))
    column, tense, verb = _PERSONS.index(clause.subject.person), clause.tense, clause.verb
    if verb.en == "be" and tense in _BE:
        return _BE[tense][column], "", rest
    if tense in ("want to", "wanted to", "had to"):
        lexical = {"want to": "want to", "wanted to": "want to", "had to": "have to"}[tense]
        auxiliary = "did" if tense != "want to" else ("does" if column == 1 else "do")
        return auxiliary, f"{lexical} {verb.en}", rest
    if tense in MODALS:
        return tense, verb.en, rest
    auxiliary = "did" if tense == "past" else ("does" if column == 1 else "do")
    return auxiliary, verb.en, rest


def _conjugate(head: str, auxiliary: str, clause: Clause) -> str:
    """Fold do-support into the verb: `does` + `carry` gives `carries`."""
    if auxiliary == "do":
        return head
    if auxiliary == "did":
        simple = {"want to": "wanted to", "have to": "had to"}
        return _past(head, clause.verb) if head == clause.verb.en else _swap(head, simple)
    first, blank, particle = head.partition(" ")
    return third_person(first) + blank + particle


def third_person(verb: str) -> str:
    """English third person singular."""
    if verb == "have":
        return "has"
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"


def _past(head: str, verb: Verb) -> str:
    if not verb.en_past:
        raise ValueError(f"expected a verb with a distinct past tense, got {head!r}; remedy: use another tense")
    return verb.en_past


def _swap(head: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        if head.startswith(old):
            return new + head[len(old) :]
    return head


def _german_verb(clause: Clause) -> tuple[str, str, str]:
    """Finite verb, separable prefix of the finite verb, and the non-finite verb of the right bracket."""
    verb, tense, column = clause.verb, clause.tense, _PERSONS.index(clause.subject.person)
    if tense in MODALS:
        return MODALS[tense][column], "", verb.prefix + verb.infinitive
    if verb.infinitive in ("sein", "haben"):
        return (_SEIN if verb.infinitive == "sein" else _HABEN)[tense][column], "", ""
    if tense == "past":
        auxiliary = _SEIN if verb.with_sein else _HABEN
        return auxiliary["present"][column], "", verb.participle
    return (verb.first, verb.third, verb.infinitive)[column], verb.prefix, ""


def _middle(clause: Clause, time_is_front: bool = False) -> list[str]:
    """Middle field: pronouns, adverbs, dative before accusative, *nicht*, then place and predicate."""
    pronouns = [nominal.german(case) for nominal, case in clause.objects if isinstance(nominal, Pronoun)]
    phrases = [(nominal, case) for nominal, case in clause.objects if isinstance(nominal, NounPhrase)]
    with_kein = clause.negated and bool(phrases) and phrases[-1][0].indefinite
    rendered = [nominal.german(case) for nominal, case in phrases[:-1]]
    rendered += [nominal.german(case, negated=with_kein) for nominal, case in phrases[-1:]]
    negation = "nicht" if clause.negated and not with_kein else ""
    time = "" if time_is_front else _de(clause.time)
    return [*pronouns, time, _de(clause.frequency), *rendered, negation, _de(clause.predicate), _de(clause.place)]


def _en(pair: tuple[str, str] | None) -> str:
    return pair[0] if pair else ""


def _de(pair: tuple[str, str] | None) -> str:
    return pair[1] if pair else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
