"""Noun phrases and pronouns of both languages, with German case, gender and number agreement."""

from __future__ import annotations

from dataclasses import dataclass

from .lexicon import Adjective, Noun

# Endings for masculine, feminine, neuter, plural.
_STRONG = {"nom": ("er", "e", "es", "e"), "acc": ("en", "e", "es", "e"), "dat": ("em", "er", "em", "en")}
_WEAK = {"nom": ("e", "e", "e", "en"), "acc": ("en", "e", "e", "en"), "dat": ("en", "en", "en", "en")}
_MIXED = {"nom": ("er", "e", "es", "en"), "acc": ("en", "e", "es", "en"), "dat": ("en", "en", "en", "en")}
_EIN = {"nom": ("", "e", "", "e"), "acc": ("en", "e", "", "e"), "dat": ("em", "er", "em", "en")}
_DER = {"nom": ("der", "die", "das", "die"), "acc": ("den", "die", "das", "die"), "dat": ("dem", "der", "dem", "den")}
_RELATIVE = {**_DER, "dat": ("dem", "der", "dem", "denen")}

# German stem of each English determiner, the endings it takes, and the endings of the adjective after it.
_DETERMINERS = {
    "this": ("dies", _STRONG, _WEAK),
    "these": ("dies", _STRONG, _WEAK),
    "every": ("jed", _STRONG, _WEAK),
    "all": ("all", _STRONG, _WEAK),
    "many": ("viel", _STRONG, _STRONG),
    "a": ("ein", _EIN, _MIXED),
    "no": ("kein", _EIN, _MIXED),
    "my": ("mein", _EIN, _MIXED),
    "our": ("unser", _EIN, _MIXED),
    "his": ("sein", _EIN, _MIXED),
    "her": ("ihr", _EIN, _MIXED),
    "their": ("ihr", _EIN, _MIXED),
}
_NUMERALS = {"two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}
_CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
    "bei dem": "beim",
}
_PRONOUNS = {
    "I": ("me", "ich", "mich", "mir"),
    "he": ("him", "er", "ihn", "ihm"),
    "she": ("her", "sie", "sie", "ihr"),
    "it": ("it", "es", "es", "ihm"),
    "we": ("us", "wir", "uns", "uns"),
    "they": ("them", "sie", "sie", "ihnen"),
}
_CASES = ("nom", "acc", "dat")


@dataclass(frozen=True)
class Pronoun:
    """A personal pronoun; `gender` decides what *it* becomes in German."""

    en: str
    gender: str = "n"

    @property
    def person(self) -> str:
        return {"I": "1s", "we": "pl", "they": "pl"}.get(self.en, "3s")

    @property
    def owner(self) -> str:
        """English possessive determiner that refers back to this pronoun."""
        return {"I": "my", "we": "our", "he": "his", "she": "her", "it": "its", "they": "their"}[self.en]

    def english(self, subject: bool = False) -> str:
        return self.en if subject else _PRONOUNS[self.en][0]

    def german(self, case: str, negated: bool = False) -> str:
        key = {"m": "he", "f": "she", "n": "it"}[self.gender] if self.en == "it" else self.en
        return _PRONOUNS[key][1 + _CASES.index(case)]


@dataclass(frozen=True)
class NounPhrase:
    """
    Determiner, adjective, noun and a relative clause given as an (English, German) pair.

    `owner_gender` is the gender of what *its* refers to: *sein* for masculine and neuter, *ihr* for feminine.
    """

    noun: Noun
    det: str = "the"
    plural: bool = False
    adjective: Adjective | None = None
    relative: tuple[str, str] | None = None
    owner_gender: str = "n"

    @property
    def person(self) -> str:
        return "pl" if self.plural else "3s"

    @property
    def indefinite(self) -> bool:
        """Whether German negates the phrase with *kein*."""
        return self.det in ("a", "")

    def english(self, subject: bool = False) -> str:
        noun = self.noun.en_plural if self.plural else self.noun.en
        core = f"{self.adjective.en} {noun}" if self.adjective else noun
        det = _article(core) if self.det == "a" else self.det
        return _join(det, core, self.relative[0] if self.relative else "")

    def german(self, case: str, negated: bool = False) -> str:
        det = "no" if negated else self.det
        column = 3 if self.plural else "mfn".index(self.noun.gender)
        article, endings = self._german_determiner(det, case, column)
        adjective = self.adjective.de_stem + endings[case][column] if self.adjective else ""
        relative = f", {self.relative[1]}," if self.relative else ""
        return _join(article, adjective, self._german_noun(case)) + relative

    def pronoun(self) -> Pronoun | None:
        """The pronoun for this phrase, or None where English and German gender would not determine each other."""
        if self.plural:
            return Pronoun("they")
        names = {"man": "he", "woman": "she", "child": None}
        name = names.get(self.noun.kind, "it")
        return Pronoun(name, self.noun.gender) if name else None

    def relative_pronoun(self, case: str) -> tuple[str, str]:
        """English and German relative pronoun for this phrase."""
        english = "who" if self.noun.kind in ("man", "woman", "child") and case == "nom" else "that"
        return english, _RELATIVE[case][3 if self.plural else "mfn".index(self.noun.gender)]

    def _german_determiner(self, det: str, case: str, column: int) -> tuple[str, dict[str, tuple[str, ...]]]:
        if det == "the":
            return _DER[case][column], _WEAK
        if det == "" or det in _NUMERALS:
            return _NUMERALS.get(det, ""), _STRONG
        if det == "its":
            det = "her" if self.owner_gender == "f" else "his"
        stem, endings, adjective_endings = _DETERMINERS[det]
        return stem + endings[case][column], adjective_endings

    def _german_noun(self, case: str) -> str:
        if not self.plural:
            return self.noun.de if case == "nom" else self.noun.de_oblique
        plural = self.noun.de_plural
        return plural + "n" if case == "dat" and plural[-1] not in "ns" else plural


Nominal = NounPhrase | Pronoun


def prepositional(english: str, german: str, phrase: Nominal, case: str) -> tuple[str, str]:
    """A prepositional phrase in both languages, with the usual German contractions (*im*, *zur*, ...)."""
    german_phrase = f"{german} {phrase.german(case)}"
    for full, short in _CONTRACTIONS.items():
        if german_phrase.startswith(full + " "):
            german_phrase = short + german_phrase[len(full) :]
    return f"{english} {phrase.english()}", german_phrase


def _article(following: str) -> str:
    if following.startswith("honest"):
        return "an"
    return "an" if following[0] in "aeiou" and not following.startswith("us") else "a"


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
