"""The demo corpus: German agreement and word order, splits, determinism."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from sms_hf.demo import demo_corpus
from sms_hf.demo.grammar import lexicon as lex
from sms_hf.demo.grammar.clauses import (
    Clause,
    english_clause,
    english_question,
    german_infinitive,
    german_main,
    german_question,
    german_subordinate,
    third_person,
)
from sms_hf.demo.grammar.nominals import NounPhrase, Pronoun, prepositional
from sms_hf.demo.grammar.pairs import sentence_pairs

_NOUNS = {
    noun.en: noun
    for group in (lex.PEOPLE, lex.ANIMALS, lex.FOOD, lex.DRINKS, lex.TEXTS, lex.CLOTHES, lex.OBJECTS, lex.PLACES)
    for noun in group
}
_ADJECTIVES = {adjective.en: adjective for group in lex.ADJECTIVES.values() for adjective in group}
_VERBS = {
    verb.en: verb
    for group in (lex.INTRANSITIVE, *(verbs for verbs, _ in lex.TRANSITIVE), lex.DATIVE, lex.GIVING, lex.MOTION)
    for verb in group
}


def _np(det: str, noun: str, adjective: str | None = None, plural: bool = False) -> NounPhrase:
    return NounPhrase(_NOUNS[noun], det, plural, _ADJECTIVES[adjective] if adjective else None)


@pytest.mark.parametrize(
    ("phrase", "english", "nominative", "accusative", "dative"),
    [
        (_np("the", "dog", "old"), "the old dog", "der alte Hund", "den alten Hund", "dem alten Hund"),
        (_np("a", "dog", "old"), "an old dog", "ein alter Hund", "einen alten Hund", "einem alten Hund"),
        (_np("the", "cat", "small"), "the small cat", "die kleine Katze", "die kleine Katze", "der kleinen Katze"),
        (_np("my", "cat", "small"), "my small cat", "meine kleine Katze", "meine kleine Katze", "meiner kleinen Katze"),
        (_np("a", "book", "new"), "a new book", "ein neues Buch", "ein neues Buch", "einem neuen Buch"),
        (_np("this", "book", "new"), "this new book", "dieses neue Buch", "dieses neue Buch", "diesem neuen Buch"),
        (_np("", "water", "cold"), "cold water", "kaltes Wasser", "kaltes Wasser", "kaltem Wasser"),
        (_np("", "milk", "warm"), "warm milk", "warme Milch", "warme Milch", "warmer Milch"),
        (_np("the", "child", None, True), "the children", "die Kinder", "die Kinder", "den Kindern"),
        (
            _np("two", "man", "rich", True),
            "two rich men",
            "zwei reiche Männer",
            "zwei reiche Männer",
            "zwei reichen Männern",
        ),
        (
            _np("all", "man", "rich", True),
            "all rich men",
            "alle reichen Männer",
            "alle reichen Männer",
            "allen reichen Männern",
        ),
        (_np("the", "boy"), "the boy", "der Junge", "den Jungen", "dem Jungen"),
        (
            _np("our", "bear", "tired"),
            "our tired bear",
            "unser müder Bär",
            "unseren müden Bären",
            "unserem müden Bären",
        ),
        (_np("a", "hat", "expensive"), "an expensive hat", "ein teurer Hut", "einen teuren Hut", "einem teuren Hut"),
    ],
)
def test_noun_phrases_agree_in_gender_case_and_number(phrase, english, nominative, accusative, dative):
    assert phrase.english() == english
    assert [phrase.german(case) for case in ("nom", "acc", "dat")] == [nominative, accusative, dative]


_MAN = _np("the", "man")
_BOOK = ((_np("the", "book"), "acc"),)
_TODAY, _YESTERDAY = ("today", "heute"), ("yesterday", "gestern")
_CALL = Clause(_MAN, _VERBS["call"], objects=((Pronoun("she"), "acc"),))
_INTO_GARDEN = prepositional("into", "in", _np("the", "garden"), "acc")


@pytest.mark.parametrize(
    ("clause", "front", "english", "german"),
    [
        (Clause(_MAN, _VERBS["sleep"], time=_TODAY), True, "today the man sleeps", "heute schläft der Mann"),
        (
            Clause(_MAN, _VERBS["find"], objects=_BOOK, time=_TODAY),
            False,
            "the man finds the book today",
            "der Mann findet heute das Buch",
        ),
        (_CALL, False, "the man calls her", "der Mann ruft sie an"),
        (
            Clause(_MAN, _VERBS["find"], "past", _BOOK, time=_YESTERDAY),
            True,
            "yesterday the man found the book",
            "gestern hat der Mann das Buch gefunden",
        ),
        (
            Clause(Pronoun("we"), _VERBS["go"], "past", place=_INTO_GARDEN),
            False,
            "we went into the garden",
            "wir sind in den Garten gegangen",
        ),
        (Clause(Pronoun("I"), _VERBS["wake up"], "past"), False, "I woke up", "ich bin aufgewacht"),
        (
            Clause(_MAN, _VERBS["call"], "can", ((Pronoun("he"), "acc"),)),
            False,
            "the man can call him",
            "der Mann kann ihn anrufen",
        ),
        (
            Clause(_MAN, _VERBS["find"], objects=_BOOK, negated=True),
            False,
            "the man does not find the book",
            "der Mann findet das Buch nicht",
        ),
        (
            Clause(_MAN, _VERBS["find"], "past", ((_np("a", "key"), "acc"),), negated=True),
            False,
            "the man did not find a key",
            "der Mann hat keinen Schlüssel gefunden",
        ),
        (
            Clause(_MAN, _VERBS["help"], objects=((_np("his", "mother"), "dat"),)),
            False,
            "the man helps his mother",
            "der Mann hilft seiner Mutter",
        ),
        (
            Clause(_MAN, _VERBS["give"], objects=((_np("a", "child"), "dat"), (_np("the", "book"), "acc"))),
            False,
            "the man gives a child the book",
            "der Mann gibt einem Kind das Buch",
        ),
        (
            Clause(_MAN, _VERBS["find"], "had to", _BOOK),
            False,
            "the man had to find the book",
            "der Mann musste das Buch finden",
        ),
        (Clause(_MAN, _VERBS["sleep"], "want to"), False, "the man wants to sleep", "der Mann will schlafen"),
    ],
)
def test_main_clauses(clause, front, english, german):
    assert english_clause(clause, front) == english
    assert german_main(clause, clause.time[1] if front else "") == german


@pytest.mark.parametrize(
    ("tense", "german"),
    [
        ("present", "weil der Mann sie anruft"),
        ("past", "weil der Mann sie angerufen hat"),
        ("must", "weil der Mann sie anrufen muss"),
    ],
)
def test_finite_verb_ends_subordinate_clauses(tense, german):
    clause = Clause(_MAN, _VERBS["call"], tense, ((Pronoun("she"), "acc"),))
    assert german_subordinate(clause, "weil") == german


def test_zu_goes_between_prefix_and_verb():
    assert german_infinitive(_CALL) == "sie anzurufen"
    assert german_infinitive(Clause(_MAN, _VERBS["find"], objects=_BOOK)) == "das Buch zu finden"


def test_questions_start_with_the_finite_verb():
    clause = Clause(_MAN, _VERBS["wake up"])
    assert (english_question(clause), german_question(clause)) == ("does the man wake up", "wacht der Mann auf")
    assert (english_question(clause, "why"), german_question(clause, "warum")) == (
        "why does the man wake up",
        "warum wacht der Mann auf",
    )


def test_prepositions_govern_case_and_contract():
    garden = _np("the", "garden")
    assert prepositional("in", "in", garden, "dat") == ("in the garden", "im Garten")
    assert prepositional("into", "in", garden, "acc") == ("into the garden", "in den Garten")
    assert prepositional("to", "zu", _np("the", "school"), "dat") == ("to the school", "zur Schule")
    assert prepositional("for", "für", _np("a", "boy"), "acc") == ("for a boy", "für einen Jungen")


def test_pronouns_follow_grammatical_gender():
    assert [_np("the", noun).pronoun().german("nom") for noun in ("hat", "bag", "book")] == ["er", "sie", "es"]
    assert _np("the", "book", plural=True).pronoun().german("dat") == "ihnen"
    assert [_np("the", noun).relative_pronoun("dat")[1] for noun in ("man", "woman", "child")] == ["dem", "der", "dem"]


def test_english_third_person():
    assert [third_person(verb) for verb in ("carry", "catch", "go", "play", "have")] == [
        "carries",
        "catches",
        "goes",
        "plays",
        "has",
    ]


def test_sentences_are_tidy_and_have_one_translation():
    translations: dict[str, str] = {}
    for english, german in itertools.islice(sentence_pairs(5), 8000):
        assert translations.setdefault(english, german) == german
        for side in (english, german):
            assert side[0].isupper()
            assert side[-1] in ".?"
            assert not [flaw for flaw in ("  ", " ,", ",.", ",,") if flaw in side]
    text = " ".join(translations.values())
    for phenomenon in (", weil ", ", dass ", "Wenn ", " zu ", ", der ", " kein", " nicht ", "Gestern "):
        assert phenomenon in text


def _columns(split) -> tuple[list[str], list[str]]:
    pairs = split["translation"]
    return [pair["en"] for pair in pairs], [pair["de"] for pair in pairs]


def test_splits_are_disjoint_in_both_languages():
    corpus = demo_corpus(num_train=2000, num_validation=100, num_test=200)
    assert {name: len(split) for name, split in corpus.items()} == {"train": 2000, "validation": 100, "test": 200}
    for language in (0, 1):
        sentences = [text for split in corpus.values() for text in _columns(split)[language]]
        assert len(set(sentences)) == 2300


def test_corpus_is_the_same_everywhere():
    corpus = demo_corpus(num_train=500, num_validation=50, num_test=50)
    text = "\n".join(line for split in corpus.values() for column in _columns(split) for line in column)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "6446f3104ca9a7fef2631bc1c7e52d4363e46bcf757faf0380574b610e43ca3d"
    )


def test_seed_changes_the_sentences_and_train_size_leaves_held_out_splits():
    small, large = demo_corpus(100, 20, 20), demo_corpus(300, 20, 20)
    assert _columns(small["validation"]) == _columns(large["validation"])
    assert _columns(small["test"]) == _columns(large["test"])
    assert _columns(small["train"]) != _columns(demo_corpus(100, 20, 20, seed=1)["train"])


def test_empty_split_is_refused():
    with pytest.raises(ValueError, match="expected num_test >= 1, got 0"):
        demo_corpus(10, 10, 0)
