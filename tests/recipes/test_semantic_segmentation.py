"""The segmentation recipe: folders of images and label maps, labels that count nowhere, clear errors, the demo."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import semantic_segmentation as recipe
import yaml
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessorPil

from sms_hf import tasks
from sms_hf.demo import demo_segmenter

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "semantic_segmentation.py"
SIDE = {"height": 16, "width": 16}


def settings(**changes):
    return dataclasses.replace(recipe.RecipeArguments(), **changes)


def draw(folder, number=8, left=0, right=1, mode="L"):
    """Images of 16 x 16 pixels, dark on the left and bright on the right, with their maps."""
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for i in range(number):
        half = np.arange(16)[None].repeat(16, 0) >= 8
        Image.fromarray(np.where(half, 200 + i, 20).astype(np.uint8)).save(folder / "images" / f"{i}.jpg")
        labels = Image.fromarray(np.where(half, right, left).astype(np.uint8))
        if mode == "P":
            labels.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        labels.convert(mode).save(folder / "annotations" / f"{i}.png")
    return str(folder)


def prepare(options, num_labels=2):
    processor = SegformerImageProcessorPil(size=SIDE)
    return recipe.with_pixels(recipe.load_images(options), processor, options, num_labels)


@pytest.mark.parametrize("name", ["semantic_segmentation.yaml", "semantic_segmentation_demo.yaml"])
def test_every_yaml_holds_settings_of_the_recipe(name, tmp_path):
    path, extra = ROOT / "recipes" / name, ["--demo"] if "demo" in name else []
    argv = [str(path), *extra, "--output_dir", str(tmp_path), "--num_train_epochs", "0.5"]
    options, args = tasks.parse(argv, str(RECIPE), recipe.RecipeArguments)
    assert args.num_train_epochs == 0.5, "the command line wins"
    assert args.target_sparsity == yaml.safe_load(path.read_text())["target_sparsity"]
    assert args.metric_for_best_model == "mean_iou"
    assert options.demo == bool(extra)


def test_started_as_a_script_it_ends_with_one_sentence(tmp_path):
    command = [sys.executable, str(RECIPE), "--output_dir", str(tmp_path), "--label_file", "nowhere.txt"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("Expected the names of the classes, a line each, in nowhere.txt")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("mode", ["L", "P"])
def test_images_and_their_maps(mode, tmp_path):
    data = prepare(settings(train_dir=draw(tmp_path / "train", mode=mode), train_val_split=0.25))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 6, "validation": 2}
    batch = data["train"][:2]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].tolist() == [[[0] * 8 + [1] * 8] * 16] * 2
    left, right = batch["pixel_values"][0, 0, 0, 2], batch["pixel_values"][0, 0, 0, 13]
    assert left < 0 < right, "a map belongs to the image of its name"


def test_maps_that_count_from_one_and_pixels_that_count_nowhere(tmp_path):
    one = prepare(settings(train_dir=draw(tmp_path / "one", left=0, right=2), reduce_labels=True))
    assert one["train"][0]["labels"].tolist() == [[255] * 8 + [1] * 8] * 16
    ignored = prepare(settings(train_dir=draw(tmp_path / "ignored", left=255, right=1)))
    assert ignored["train"][0]["labels"].tolist() == [[255] * 8 + [1] * 8] * 16


def test_clear_errors(tmp_path):
    with pytest.raises(SystemExit, match=r"pass --train_dir or --dataset_name, or run with --demo"):
        recipe.load_images(settings())
    with pytest.raises(SystemExit, match=r"Expected a folder .*nowhere.images, found none"):
        recipe.load_images(settings(train_dir=str(tmp_path / "nowhere")))
    unknown = draw(tmp_path / "unknown", right=7)
    with pytest.raises(SystemExit, match=r"Labels must lie in \[0, 2\) or be 255, got \[7\]"):
        prepare(settings(train_dir=unknown))
    with pytest.raises(SystemExit, match=r"Labels must lie in \[1, 3\) or be 255, got \[7\]"):
        prepare(settings(train_dir=unknown, reduce_labels=True))
    (tmp_path / "unknown" / "annotations" / "3.png").unlink()
    with pytest.raises(SystemExit, match=r"needs a label map of its name in .*annotations, not found: 3\.png\."):
        recipe.load_images(settings(train_dir=unknown))
    colored = draw(tmp_path / "colored", mode="RGB")
    with pytest.raises(SystemExit, match=r"one channel and the size of its image \(16, 16\), got .* mode RGB"):
        prepare(settings(train_dir=colored))
    with pytest.raises(SystemExit, match=r"names of the classes, a line each, in nowhere\.txt"):
        recipe.class_names(settings(label_file="nowhere.txt"))


def test_images_from_disk_and_a_model_with_a_new_head(tmp_path, capsys):
    train, folder = draw(tmp_path / "train"), tmp_path / "segformer"
    demo_segmenter(["a", "b", "c"]).save_pretrained(folder)
    SegformerImageProcessorPil(size=SIDE, do_reduce_labels=True).save_pretrained(folder)
    (tmp_path / "names.txt").write_text("left\nright\n")
    where = ["--train_dir", train, "--test_dir", train, "--model_name_or_path", str(folder)]
    where += ["--label_file", str(tmp_path / "names.txt"), "--output_dir", str(tmp_path / "out")]
    quick = ["--num_phases", "1", "--num_candidates", "2", "--num_train_epochs", "1", "--dataloader_num_workers", "0"]
    quick += ["--per_device_train_batch_size", "4", "--train_val_split", "0.25", "--use_cpu", "--save_strategy", "no"]
    tasks.run([*where, *quick], str(RECIPE), recipe.RecipeArguments, recipe.load_task)
    new = "new are decode_head.classifier.bias, decode_head.classifier.weight."
    assert new in capsys.readouterr().out
    assert "mean_iou" in json.loads((tmp_path / "out" / "report.json").read_text())["dense"]
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_reduce_labels"] is False
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "left", 1: "right"}


def test_the_demo_ends_with_a_table_and_a_model(tmp_path, capfd):
    """The whole job on a few scenes: it is the path that is tested, not the quality."""
    quick = ["--max_train_samples", "40", "--max_eval_samples", "10", "--max_test_samples", "10", "--dense_epochs", "1"]
    quick += ["--num_train_epochs", "1", "--num_candidates", "2", "--output_dir", str(tmp_path)]
    tasks.run(["--demo", *quick], str(RECIPE), recipe.RecipeArguments, recipe.load_task)
    lines = capfd.readouterr().out.splitlines()
    rows = [line.split()[0] for line in lines if re.match(r"(dense|phase-\d)\s{2,}", line)]
    assert rows == ["dense"] + ["phase-1"] * 5 + ["phase-2"] * 5
    assert any("test mean_iou" in line for line in lines)
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.id2label[4] == "ring"
