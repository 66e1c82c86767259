"""How a model is loaded: which class does it, in lines of Python."""

import json
from collections.abc import Collection

from ..files.folder import MASKS

TASKS = {
    "ForConditionalGeneration": "text2text-generation",
    "MTModel": "translation",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
}
"""End of a class's name -> task of the Hub."""


def task_of(model_class: str) -> str | None:
    """Task of the Hub that models of a class are for, as far as its name tells."""
    return next((task for end, task in TASKS.items() if model_class.endswith(end)), None)


def auto_class(model_class: str) -> str:
    """What loads models of a class."""
    auto = {
        "text2text-generation": "AutoModelForSeq2SeqLM",
        "translation": "AutoModelForSeq2SeqLM",
        "text-generation": "AutoModelForCausalLM",
    }
    return auto.get(task_of(model_class) or "", model_class)


def load_lines(name: str, model_class: str, files: Collection[str]) -> list[str]:
    """
    Lines of Python that load a model; none where there are no weights.

    Args:
        name (`str`): The folder or repository.
        model_class (`str`): Of the model.
        files (`Collection[str]`): Names of its files of weights.
    """
    weights = [file for file in files if file.endswith(".safetensors") and file != MASKS]
    if any(".sparse" not in file for file in weights):
        auto = auto_class(model_class)
        return [f"from transformers import {auto}", "", f"model = {auto}.from_pretrained({json.dumps(name)})"]
    return ["import sms_hf", "", f"model = sms_hf.load({json.dumps(name)})"] if weights else []
