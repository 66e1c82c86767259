"""
Prune a SegFormer and make a sparse model soup of it.

    accelerate launch recipes/semantic_segmentation.py --train_dir DIR --validation_dir DIR --label_file names.txt
    accelerate launch recipes/semantic_segmentation.py --dataset_name NAME --image_column image --label_column label
    accelerate launch recipes/semantic_segmentation.py --demo            no download: a tiny SegFormer, generated scenes

A folder holds `images/` and `annotations/`, matched by name: `images/1.jpg` belongs to `annotations/1.png`, a map of one
channel whose values are the classes, 255 for pixels that count nowhere. Settings come from a YAML file (by default
`semantic_segmentation.yaml` beside this script, with `--demo` `semantic_segmentation_demo.yaml`); what stands on the command
line wins. The model has to be fine-tuned already: one without a fitting head gets a new one, and a line says so.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from sms_hf import SparseSoupTrainingArguments, tasks
from sms_hf.demo import SCENE_CLASSES, demo_scenes, demo_segmenter
from sms_hf.metrics import class_maps, segmentation_metrics
from sms_hf.tasks import FolderArguments, RecipeError, Task

INSTEAD = "--model_name_or_path FOLDER and --train_dir FOLDER"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
IGNORED = 255
NUM_CHECKED = 50
"""So many label maps of a split are looked at before anything is trained, all others when their batch is made."""


@dataclass
class RecipeArguments(FolderArguments):
    """Model and data; everything else are `SparseSoupTrainingArguments`."""

    dense_epochs: float = field(default=25.0, metadata={"help": "With --demo: epochs of training for the dense model."})
    model_name_or_path: str = field(
        default="nvidia/segformer-b0-finetuned-ade-512-512",
        metadata={"help": "Dense SegFormer: a name on the Hub or a folder."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with images/ and annotations/."})
    image_column: str = field(default="image", metadata={"help": "Column of the image."})
    label_column: str = field(default="label", metadata={"help": "Column of the label map."})
    label_file: str | None = field(
        default=None, metadata={"help": "Names of the classes, a line each, in order. Default: those of the model."}
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "The maps count classes from 1, and 0 counts nowhere, as in ADE20K."}
    )


# ---- Data --------------------------------------------------------------------------------------------------------------


def load_images(recipe: RecipeArguments) -> datasets.DatasetDict:
    """The splits, with columns `image` and `label`, both images."""
    if recipe.train_dir:
        images = datasets.DatasetDict({split: read_folder(Path(folder)) for split, folder in recipe.folders.items()})
    elif recipe.dataset_name:
        images = tasks.read_hub(recipe, INSTEAD)
        wanted = {recipe.image_column: "image", recipe.label_column: "label"}
        options = "--image_column and --label_column"
        images = datasets.DatasetDict(
            {s: tasks.select_columns(data, str(s), wanted, options) for s, data in images.items()}
        )
    else:
        raise RecipeError("Expected images with label maps: pass --train_dir or --dataset_name, or run with --demo.")
    if "validation" not in images:
        parts = images["train"].train_test_split(recipe.train_val_split, seed=0)
        images["train"], images["validation"] = parts["train"], parts["test"]
    return tasks.limit(images, recipe)


def read_folder(folder: Path) -> datasets.Dataset:
    for name in ("images", "annotations"):
        if not (folder / name).is_dir():
            raise RecipeError(
                f"Expected a folder {folder / name}, found none. {folder} needs images/ and annotations/."
            )
    images = sorted(path for path in (folder / "images").iterdir() if path.suffix.lower() in IMAGES)
    if not images:
        raise RecipeError(f"Expected images in {folder / 'images'}, found none that ends with {', '.join(IMAGES)}.")
    maps = [folder / "annotations" / f"{path.stem}.png" for path in images]
    absent = [path.name for path in maps if not path.is_file()]
    if absent:
        raise RecipeError(
            f"Every image in {folder / 'images'} needs a label map of its name in {folder / 'annotations'}, not found: "
            f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}."
        )
    columns = {"image": [str(path) for path in images], "label": [str(path) for path in maps]}
    return datasets.Dataset.from_dict(columns, datasets.Features(image=datasets.Image(), label=datasets.Image()))


def read_map(row: dict, recipe: RecipeArguments, num_labels: int) -> np.ndarray:
    """The label map of a row as it lies on the disk, `(height, width)`; refused if it does not fit image or classes."""
    values = np.array(row["label"])
    if values.ndim != 2 or row["label"].size != row["image"].size:
        raise RecipeError(
            f"A label map must have one channel and the size of its image {row['image'].size}, got size "
            f"{row['label'].size}, mode {row['label'].mode}."
        )
    first = int(recipe.reduce_labels)
    ignored = (values == IGNORED) | (values < first)
    unknown = sorted({int(value) for value in np.unique(values[~ignored]) if value >= num_labels + first})
    if unknown:
        raise RecipeError(
            f"Labels must lie in [{first}, {num_labels + first}) or be {IGNORED}, got {unknown[:8]}. Name all classes in "
            "--label_file; if the maps count them from 1, set --reduce_labels."
        )
    return values.astype(np.int64)


def with_pixels(images: datasets.DatasetDict, processor, recipe: RecipeArguments, num_labels: int):
    """Images are read and processed when a batch asks for them: a data set of any size fits."""

    def process(batch):
        rows = [{"image": image, "label": label} for image, label in zip(batch["image"], batch["label"], strict=True)]
        maps = [read_map(row, recipe, num_labels) for row in rows]
        pictures = [image.convert("RGB") for image in batch["image"]]
        inputs = processor(pictures, segmentation_maps=maps, do_reduce_labels=recipe.reduce_labels, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], "labels": inputs["labels"]}

    for data in images.values():
        for row in cast("Iterable[dict]", data.select(range(min(NUM_CHECKED, len(data))))):
            read_map(row, recipe, num_labels)
    return images.with_transform(process)


def class_names(recipe: RecipeArguments) -> list[str]:
    if recipe.label_file is None:
        name = recipe.model_name_or_path
        config: Any = tasks.from_hub(name, lambda: AutoConfig.from_pretrained(name), INSTEAD)
        return [config.id2label[i] for i in range(config.num_labels)]
    if not Path(recipe.label_file).is_file():
        raise RecipeError(
            f"Expected the names of the classes, a line each, in {recipe.label_file}, found no such file."
        )
    return [line.strip() for line in Path(recipe.label_file).read_text(encoding="utf-8").splitlines() if line.strip()]


# ---- The task ----------------------------------------------------------------------------------------------------------


def load_task(recipe: RecipeArguments, args: SparseSoupTrainingArguments) -> Task:
    if recipe.demo:
        scenes = tasks.limit(demo_scenes(), recipe)
        name = tasks.demo_model(recipe, args, lambda: make_task(demo_segmenter(SCENE_CLASSES, args.seed), scenes))
        return make_task(AutoModelForSemanticSegmentation.from_pretrained(name), scenes)
    name, names, images = recipe.model_name_or_path, class_names(recipe), load_images(recipe)
    model, order = tasks.model_for_classes(AutoModelForSemanticSegmentation, name, names, args.seed, INSTEAD)
    if order != names:
        raise RecipeError(f"The model has the classes of --label_file in another order; list them as it does: {order}.")
    # Pillow's version of the processor: torchvision is not needed.
    processor = tasks.from_hub(name, lambda: AutoImageProcessor.from_pretrained(name, backend="pil"), INSTEAD)
    processor.do_reduce_labels = recipe.reduce_labels
    args.remove_unused_columns = False  # The transform needs columns that the model does not know.
    return make_task(model, with_pixels(images, processor, recipe, len(names)), processor)


def make_task(model: PreTrainedModel, data: datasets.DatasetDict, processor=None) -> Task:
    names = model.config.id2label or {}
    return Task(
        model=model,
        train=data["train"],
        validation=data["validation"],
        test=data.get("test"),
        processing_class=processor,
        compute_metrics=segmentation_metrics(len(names), IGNORED),
        preprocess_logits_for_metrics=class_maps,
        footnote=f"IoU: mean over {len(names)} classes; ",
    )


if __name__ == "__main__":
    tasks.run(sys.argv[1:], __file__, RecipeArguments, load_task)
