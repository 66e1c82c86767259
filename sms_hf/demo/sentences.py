"""English sentences of the demo grammar, alone and with a judgement, and a tokenizer of their words."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .corpus import demo_corpus
from .grammar import lexicon as lex
from .grammar.clauses import third_person
from .grammar.sampler import Sampler

JUDGEMENTS = ("correct", "wrong")
"""Labels of [`demo_judgements`]: wrong is a sentence with a verb that does not agree with its subject."""


def demo_sentences(
    num_train: int = 16000, num_validation: int = 500, num_test: int = 500, seed: int = 0
) -> DatasetDict:
    """Grammatical English sentences, column `text`, in splits that share none; the same on every machine."""
    corpus = demo_corpus(num_train, num_validation, num_test, seed)
    return DatasetDict(
        {
            name: Dataset.from_dict({"text": [pair["en"] for pair in data["translation"]]})
            for name, data in corpus.items()
        }
    )


def demo_judgements(
    num_train: int = 16000, num_validation: int = 1000, num_test: int = 1000, seed: int = 0
) -> DatasetDict:
    """
    English sentences, some of them with a verb in the wrong form; columns `text` and `label`.

    The same verb is right in one sentence and wrong in another: a label takes the verb and its subject, or its auxiliary.
    """
    sentences = demo_sentences(num_train, num_validation, num_test, seed)
    return DatasetDict({name: _judged(data["text"], f"{seed}-{name}") for name, data in sentences.items()})


def _judged(sentences: Iterable[str], seed: str) -> Dataset:
    sampler = Sampler(random.Random(seed))
    rows = [_with_mistake(sentence, "wrong" if sampler.chance(0.6) else "correct", sampler) for sentence in sentences]
    return Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def _with_mistake(sentence: str, label: str, sampler: Sampler) -> tuple[str, str]:
    """The sentence with the mistake that the label asks for, and its label: correct where no verb shows agreement."""
    words = _split(sentence)
    verbs = [i for i, word in enumerate(words) if word in _OTHER_FORM]
    if label == "correct" or not verbs:
        return sentence, "correct"
    position = sampler.pick(verbs)
    words[position] = _OTHER_FORM[words[position]]
    return _join(words), label


def _split(sentence: str) -> list[str]:
    """Words and punctuation; the first word without its capital."""
    words = re.findall(r"\w+|[.,?]", sentence)
    return [words[0] if words[0] == "I" else words[0].lower(), *words[1:]]


def _join(words: list[str]) -> str:
    text = re.sub(r" ([.,?])", r"\1", " ".join(words))
    return text[0].upper() + text[1:]


def _other_forms() -> dict[str, str]:
    """Finite verb -> its form for the other number; without words that are nouns, too."""
    verbs = (*lex.INTRANSITIVE, *lex.DATIVE, *lex.GIVING, *lex.ANIMAL_ACTIONS, *lex.MOTION, *lex.POSITION)
    verbs += (*lex.PLACEMENT, *lex.THAT_VERBS, *lex.TO_VERBS, *(verb for group, _ in lex.TRANSITIVE for verb in group))
    plurals = ["do", "have", "want", *(verb.en.split()[0] for verb in verbs)]
    groups = (
        lex.PEOPLE,
        lex.ANIMALS,
        lex.FOOD,
        lex.DRINKS,
        lex.GIFTS,
        lex.DEVICES,
        lex.VEHICLES,
        lex.FURNITURE,
        lex.PLACES,
    )
    nouns = {form for group in groups for noun in group for form in (noun.en, noun.en_plural)}
    forms = {"is": "are", "are": "is", "am": "is", "was": "were", "were": "was"}
    for plural in plurals:
        if not {plural, third_person(plural)} & nouns:
            forms |= {plural: third_person(plural), third_person(plural): plural}
    return forms


_OTHER_FORM = _other_forms()


def demo_word_tokenizer(
    texts: Iterable[str], classifier: bool = False, max_length: int = 64
) -> PreTrainedTokenizerFast:
    """
    Tokenizer whose tokens are the lower-case words of some texts, the most frequent first.

    Args:
        classifier (`bool`, *optional*, defaults to `False`): Frame every text as BERT does, with `[CLS]` and `[SEP]`;
            otherwise there is an end of sentence, `</s>`, which is for the caller to set.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if classifier else ["<pad>", "<unk>", "</s>"]
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    words = special + sorted(counts, key=lambda word: (-counts[word], word))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=special[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": special[0], "unk_token": special[1], "model_max_length": max_length}
    if not classifier:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], **names)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", **names)
