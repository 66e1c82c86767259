"""A soup of the real corpus goes to the Hub by the recipe, and comes back by name in fresh processes: the same BLEU."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import run_python

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "multi30k"
MODEL = ROOT.parent / "shared" / "models" / "t5-tiny-multi30k-en-de"

TRANSLATE = """
import gzip, sacrebleu, torch
from pathlib import Path
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
{imports}
model = {load}
tokenizer = AutoTokenizer.from_pretrained({name!r})
read = lambda language: gzip.open(Path({corpus!r}) / f"test_2016_flickr.{{language}}.gz", "rt").read().splitlines()[:100]
found = []
for start in range(0, 100, 50):
    batch = tokenizer(read("en")[start : start + 50], padding=True, return_tensors="pt")
    tokens = model.generate(**batch, max_length=64, num_beams=1, do_sample=False)
    found += tokenizer.batch_decode(tokens, skip_special_tokens=True)
print("bleu", repr(sacrebleu.corpus_bleu(found, [read("de")]).score))
"""

WAYS = {
    "by name, without sms_hf": ("", "AutoModelForSeq2SeqLM.from_pretrained('tester/soup')", "tester/soup"),
    "the compact form, by name": ("import sms_hf", "sms_hf.load('tester/soup')", "tester/soup"),
    "the run's own folder": ("", "AutoModelForSeq2SeqLM.from_pretrained('run')", "run"),
}


@pytest.mark.skipif(not (CORPUS.is_dir() and MODEL.is_dir()), reason=f"needs {CORPUS} and {MODEL}")
def test_pushed_and_pulled_it_scores_the_same(hub, tmp_path):
    env = hub.environment(tmp_path / "home")
    few = "--max_train_samples 1920 --max_eval_samples 64 --max_test_samples 64 --num_train_epochs 1 --num_phases 1"
    how = "--num_candidates 2 --save_strategy no --sparse_format both --push_to_hub --hub_model_id tester/soup"
    where = ["--parallel_dir", CORPUS, "--model_name_or_path", MODEL, "--output_dir", tmp_path / "run"]
    command = [sys.executable, "recipes/wmt16_t5.py", "recipes/multi30k.yaml", *few.split(), *how.split(), *where]
    done = subprocess.run(list(map(str, command)), env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"Pushed: {hub.endpoint}/tester/soup/commit/" in done.stdout
    assert len(hub.repos["tester/soup"].history("main")) == 2, "the creation, and one push"
    card = hub.files("tester/soup")["README.md"].decode()
    assert "pipeline_tag: translation" in card
    assert "- en\n- de" in card
    scores = {}
    for number, (what, (imports, load, name)) in enumerate(WAYS.items()):
        code = TRANSLATE.format(imports=imports, load=load, name=name, corpus=str(CORPUS))
        pulled = run_python(code, hub.environment(tmp_path / f"home-{number}"), cwd=tmp_path, timeout=300)
        assert pulled.returncode == 0, pulled.stderr
        scores[what] = pulled.stdout.split("bleu ")[1].strip()
    assert len(set(scores.values())) == 1, scores
    assert float(scores["the run's own folder"]) > 5, "it translates"
