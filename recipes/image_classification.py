"""
Prune an image classifier and make a sparse model soup of it.

    accelerate launch recipes/image_classification.py --dataset_name uoft-cs/cifar10     google/vit-base-patch16-224
    accelerate launch recipes/image_classification.py --train_dir DIR --test_dir DIR     DIR/CLASS/*.png
    accelerate launch recipes/image_classification.py --demo                             no download: a small ViT, digits
    accelerate launch recipes/image_classification.py --demo --demo_model resnet         convolutions, batch norm

Settings come from a YAML file (by default `image_classification.yaml` beside this script, with `--demo`
`image_classification_demo.yaml`); what stands on the command line wins. The model has to be fine-tuned already, or the dense
training that pruning starts from is missing: a model without a fitting head gets a new one, and a line says so.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from sms_hf import SparseSoupTrainingArguments, tasks
from sms_hf.demo import DIGIT_SCALES, demo_digits, demo_image_classifier, jittered
from sms_hf.metrics import classification_metrics
from sms_hf.tasks import FolderArguments, RecipeError, Task

INSTEAD = "--model_name_or_path FOLDER and --train_dir FOLDER"
RESNET_MODULES = r".*convolution|classifier\.1"


@dataclass
class RecipeArguments(FolderArguments):
    """Model and data; everything else are `SparseSoupTrainingArguments`."""

    dense_epochs: float = field(default=25.0, metadata={"help": "With --demo: epochs of training for the dense model."})
    demo_model: str = field(
        default="vit", metadata={"help": "With --demo: the model to train.", "choices": sorted(DIGIT_SCALES)}
    )
    demo_jitter: bool = field(
        default=False, metadata={"help": "With --demo: turn and shift training images at random, every time anew."}
    )
    demo_dropout: float = field(default=0.0, metadata={"help": "With --demo: dropout of the ViT, in [0, 1)."})
    model_name_or_path: str = field(
        default="google/vit-base-patch16-224",
        metadata={"help": "Dense classifier: a name on the Hub or a folder. Any model for image classification."},
    )
    dataset_name: str = field(default="uoft-cs/cifar10", metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with a folder of images for each class."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the image. Default: image or img, whichever there is."}
    )
    label_column: str = field(default="label", metadata={"help": "Column of the class."})


# ---- Data --------------------------------------------------------------------------------------------------------------


def load_images(recipe: RecipeArguments) -> tuple[datasets.DatasetDict, list[str]]:
    """The splits, with columns `image` and `label`, and the names of the classes."""
    if recipe.train_dir:
        images = datasets.DatasetDict({split: read_folder(folder) for split, folder in recipe.folders.items()})
    else:
        images = tasks.read_hub(recipe, INSTEAD)
    images = datasets.DatasetDict({split: choose_columns(data, str(split), recipe) for split, data in images.items()})
    names = images["train"].features["label"].names
    for split, data in images.items():
        theirs = data.features["label"].names
        unknown = sorted(set(theirs) - set(names))
        if unknown:
            raise RecipeError(f"Every class must occur in the training images ({names}), got {unknown} in {split}.")
        if theirs != names:  # A folder that lacks a class numbers the others differently.
            images[split] = data.align_labels_with_mapping({name: i for i, name in enumerate(names)}, "label")
    return tasks.limit(split_train(images, recipe), recipe), names


def read_folder(folder: str) -> datasets.Dataset:
    if not Path(folder).is_dir():
        raise RecipeError(f"Expected a folder with a folder of images for each class at {folder}, found none.")
    return datasets.load_dataset("imagefolder", data_dir=folder, split="train", drop_labels=False)


def choose_columns(data: datasets.Dataset, split: str, recipe: RecipeArguments) -> datasets.Dataset:
    image = recipe.image_column or next((c for c in ("image", "img") if c in data.column_names), "image")
    wanted = {image: "image", recipe.label_column: "label"}
    data = tasks.select_columns(data, split, wanted, "--image_column and --label_column")
    return data if isinstance(data.features["label"], datasets.ClassLabel) else data.class_encode_column("label")


def split_train(images: datasets.DatasetDict, recipe: RecipeArguments) -> datasets.DatasetDict:
    """With a validation split, if need be cut off the training images, the classes in their shares."""
    train = images["train"].shuffle(seed=0)  # Folders come class by class: the first so many would be of one class.
    if "validation" not in images:
        parts = train.train_test_split(recipe.train_val_split, seed=0, stratify_by_column="label")
        return datasets.DatasetDict({**images, "train": parts["train"], "validation": parts["test"]})
    shuffled = {split: data.shuffle(seed=0) for split, data in images.items() if split != "train"}
    return datasets.DatasetDict({"train": train, **shuffled})


def with_pixels(images: datasets.DatasetDict, processor, outputs: list[int]) -> datasets.DatasetDict:
    """
    Images are read and processed when a batch asks for them: a data set of any size fits.

    Args:
        outputs (`list[int]`): Label of the data -> output of the model.
    """

    def process(batch):
        pixels = processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": [outputs[label] for label in batch["label"]]}

    return images.with_transform(process)


# ---- The task ----------------------------------------------------------------------------------------------------------


def load_task(recipe: RecipeArguments, args: SparseSoupTrainingArguments) -> Task:
    if recipe.demo:
        digits = tasks.limit(demo_digits(DIGIT_SCALES[recipe.demo_model]), recipe)
        digits = jittered(digits) if recipe.demo_jitter else digits
        name = tasks.demo_model(recipe, args, lambda: demo_task(digits, recipe, args.seed))
        model, processor, data = AutoModelForImageClassification.from_pretrained(name), None, digits
    else:
        images, names = load_images(recipe)
        name = recipe.model_name_or_path
        model, order = tasks.model_for_classes(AutoModelForImageClassification, name, names, args.seed, INSTEAD)
        # Pillow's version of the processor: torchvision is not needed.
        processor = tasks.from_hub(name, lambda: AutoImageProcessor.from_pretrained(name, backend="pil"), INSTEAD)
        data = with_pixels(images, processor, [order.index(label) for label in names])
        args.remove_unused_columns = False  # The transform needs `image`, which the model does not know.
    if model.config.model_type == "resnet" and args.target_modules is None:
        args.target_modules = RESNET_MODULES  # There is no linear layer in its body.
    return make_task(model, data, processor)


def demo_task(digits: datasets.DatasetDict, recipe: RecipeArguments, seed: int) -> Task:
    """A small ViT or ResNet from scratch."""
    labels = digits["train"].features["labels"].names
    return make_task(demo_image_classifier(labels, recipe.demo_model, seed, recipe.demo_dropout), digits)


def make_task(model: PreTrainedModel, data: datasets.DatasetDict, processor=None) -> Task:
    return Task(
        model=model,
        train=data["train"],
        validation=data["validation"],
        test=data.get("test"),
        processing_class=processor,
        compute_metrics=classification_metrics(model.config.num_labels),
        footnote=f"{model.config.num_labels} classes; ",
    )


if __name__ == "__main__":
    tasks.run(sys.argv[1:], __file__, RecipeArguments, load_task)
