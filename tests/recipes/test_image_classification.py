"""The image classification recipe: folders of images, heads, pixels without torchvision, clear errors, the demo."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import image_classification as recipe
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from sms_hf import tasks
from sms_hf.demo import demo_image_classifier

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "image_classification.py"
FEW = ["--max_train_samples", "100", "--max_eval_samples", "50", "--max_test_samples", "50", "--dense_epochs", "1"]
FEW += ["--num_train_epochs", "1", "--num_candidates", "2"]

pytestmark = pytest.mark.usefixtures("datasets_cache")


def parse(argv):
    return tasks.parse(argv, str(RECIPE), recipe.RecipeArguments)


def settings(**changes):
    return dataclasses.replace(recipe.RecipeArguments(), **changes)


def run(*arguments, **environment):
    command = [sys.executable, str(RECIPE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=os.environ | environment)


def draw(folder, names=("bright", "dark"), each=6):
    """Grey images of 10 x 12 pixels; the class is their brightness."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(np.full((10, 12), 200 - 150 * label + i, np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def save_vit(folder, names=("bright", "dark")):
    """A ViT for 8 x 8 pixels with its processor."""
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["image_classification.yaml", "image_classification_demo.yaml"])
def test_every_yaml_holds_settings_of_the_recipe(name, tmp_path):
    path, extra = ROOT / "recipes" / name, ["--demo"] if "demo" in name else []
    options, args = parse([str(path), *extra, "--output_dir", str(tmp_path), "--num_train_epochs", "0.5"])
    assert args.num_train_epochs == 0.5, "the command line wins"
    assert args.target_sparsity == yaml.safe_load(path.read_text())["target_sparsity"]
    assert args.metric_for_best_model == "accuracy"
    assert options.demo == bool(extra)


def test_folders_of_images(tmp_path):
    train = draw(tmp_path / "train", each=10)
    images, names = recipe.load_images(settings(train_dir=train, train_val_split=0.2))
    assert names == ["bright", "dark"]
    assert {split: sorted(data["label"]) for split, data in images.items()} == {
        "train": [0] * 8 + [1] * 8,
        "validation": [0] * 2 + [1] * 2,
    }
    few = recipe.load_images(settings(train_dir=train, train_val_split=0.2, max_train_samples=8))[0]["train"]
    assert len(set(few["label"])) == 2, "folders come class by class; a few rows must not be of one class"


def test_a_folder_that_lacks_a_class_numbers_the_others_alike(tmp_path):
    train, test = draw(tmp_path / "train"), draw(tmp_path / "test", names=["dark"])
    images, _ = recipe.load_images(settings(train_dir=train, test_dir=test))
    assert set(images["test"]["label"]) == {1}


def test_clear_errors(tmp_path):
    train, odd = draw(tmp_path / "train"), draw(tmp_path / "odd", names=["bright", "green"])
    with pytest.raises(SystemExit, match="Expected a folder with a folder of images for each class at nowhere"):
        recipe.load_images(settings(train_dir="nowhere"))
    with pytest.raises(SystemExit, match=r"Every class must occur in the training images .* got \['green'\] in test"):
        recipe.load_images(settings(train_dir=train, test_dir=odd))
    with pytest.raises(SystemExit, match=r"train_val_split must lie in \(0, 1\), got 0"):
        recipe.load_images(settings(train_dir=train, train_val_split=0.0))
    with pytest.raises(SystemExit, match=r"missing: \['label'\]; it has \['image', 'fine'\]"):
        recipe.choose_columns(datasets.Dataset.from_dict({"image": [1], "fine": [2]}), "train", settings())


def test_pixels_are_those_of_the_models_processor(tmp_path):
    images, _ = recipe.load_images(settings(train_dir=draw(tmp_path / "train", each=10)))
    batch = recipe.with_pixels(images, ViTImageProcessorPil(size={"height": 8, "width": 8}), [0, 1])["train"][:4]
    assert batch["pixel_values"].shape == (4, 3, 8, 8)
    for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
        value = ((pixels * 0.5 + 0.5) * 255).round().unique()  # Of an even image one value is left: 200 + i or 50 + i.
        assert len(value) == 1
        assert 0 <= value - (200 - 150 * label) < 10


def test_a_new_head_is_announced_and_a_fitting_one_kept(tmp_path, capsys):
    torch.manual_seed(7)  # Not the seed of the new head, wherever the generator of all tests stands.
    folder = save_vit(tmp_path / "vit")
    head = ViTForImageClassification.from_pretrained(folder).classifier.weight

    def load(*names):
        model, _ = tasks.model_for_classes(AutoModelForImageClassification, folder, names, 0, recipe.INSTEAD)
        return model, "new are classifier.bias, classifier.weight" in capsys.readouterr().out

    fitting, announced = load("bright", "dark")
    assert torch.equal(fitting.classifier.weight, head)
    assert not announced
    more, announced = load("a", "b", "c")
    assert announced
    assert more.classifier.weight.shape == (3, 8)
    assert more.config.id2label == {0: "a", 1: "b", 2: "c"}
    state = torch.get_rng_state()
    others, _ = tasks.model_for_classes(AutoModelForImageClassification, folder, ["cat", "dog"], 0, recipe.INSTEAD)
    assert torch.equal(torch.get_rng_state(), state)
    assert "new are classifier.weight, classifier.bias" in capsys.readouterr().out
    assert not torch.equal(others.classifier.weight, head)
    body = [name for name, _ in others.named_parameters() if name.startswith("vit.")]
    assert "vit.layers.0.attention.q_proj.weight" in body
    for name in body:
        assert torch.equal(others.get_parameter(name), fitting.get_parameter(name))


def test_without_the_hub_one_sentence_says_what_to_do(tmp_path):
    result = run("--output_dir", str(tmp_path), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert result.returncode != 0
    (sentence,) = [line for line in result.stderr.splitlines() if "Hugging Face Hub" in line]
    assert "--demo" in sentence
    assert "--train_dir" in sentence
    assert "Traceback" not in result.stderr


def test_images_from_disk_and_a_model_from_disk(tmp_path):
    train, folder = draw(tmp_path / "train", each=10), save_vit(tmp_path / "vit")
    where = [
        "--train_dir",
        train,
        "--model_name_or_path",
        folder,
        "--test_dir",
        train,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    quick = ["--num_phases", "1", "--num_candidates", "2", "--num_train_epochs", "1", "--dataloader_num_workers", "0"]
    quick += ["--use_cpu", "--save_strategy", "no"]
    tasks.run([*where, *quick], str(RECIPE), recipe.RecipeArguments, recipe.load_task)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "accuracy" in report["dense"]
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "bright", 1: "dark"}


def check_demo(output, folder, kind, prunable):
    lines = output.splitlines()
    rows = [line.split()[0] for line in lines if re.match(r"(dense|phase-\d)\s{2,}", line)]
    assert rows == ["dense"] + ["phase-1"] * 5 + ["phase-2"] * 5
    assert any("test accuracy" in line for line in lines)
    report = json.loads((folder / "report.json").read_text())
    assert report["phases"][1]["parent"]["num_kept"] == prunable - round(0.9 * prunable)
    assert AutoModelForImageClassification.from_pretrained(folder).config.model_type == kind


def test_the_demo_ends_with_a_table_and_a_model(tmp_path):
    """The whole job on a few digits: it is the path that is tested, not the quality."""
    result = run("--demo", *FEW, "--output_dir", str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    check_demo(result.stdout, tmp_path, "vit", 65536)


def test_the_demo_of_a_resnet_prunes_convolutions_and_classifier(tmp_path, capsys):
    argv = ["--demo", "--demo_model", "resnet", *FEW, "--output_dir", str(tmp_path)]
    tasks.run(argv, str(RECIPE), recipe.RecipeArguments, recipe.load_task)
    check_demo(capsys.readouterr().out, tmp_path, "resnet", 43448)


def test_a_dense_model_is_found_where_it_lies_and_target_modules_are_the_users(tmp_path):
    folder = tmp_path / "dense"
    demo_image_classifier([str(i) for i in range(10)], "resnet").save_pretrained(folder)
    argv = ["--demo", "--demo_model", "resnet", "--output_dir", str(tmp_path / "out"), "--dense_dir", str(folder)]
    options, args = parse([*argv, "--target_modules", ".*shortcut.convolution"])
    task = recipe.load_task(options, args)
    assert args.target_modules == ".*shortcut.convolution"
    assert (len(task.train), len(task.validation), len(task.test)) == (1000, 297, 500)
    assert not (tmp_path / "out" / "_dense").exists()
