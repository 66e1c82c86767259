"""Data that recipes read from local files."""

import gzip

import pytest

from sms_hf.tasks import RecipeError
from sms_hf.tasks.data import read_files

pytestmark = pytest.mark.usefixtures("datasets_cache")

ROWS = [{"text": "good", "label": 1}, {"text": "bad, \u00e9h", "label": 0}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv.gz", 'text,label\ngood,1\n"bad, \u00e9h",0\n'),
        ("rows.jsonl.gz", '{"text": "good", "label": 1}\n{"text": "bad, \u00e9h", "label": 0}\n'),
    ],
)
def test_compressed_files_hold_the_same_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert read_files({"train": str(tmp_path / name)})["train"].to_list() == ROWS


@pytest.mark.parametrize("kind", ["xlsx", "parquet"])
def test_a_compressed_file_of_another_kind_is_refused(tmp_path, kind):
    (tmp_path / f"rows.{kind}.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(
        RecipeError, match=rf"got .*rows\.{kind}\.gz\. It may be compressed: \.csv\.gz, but not \.parquet"
    ):
        read_files({"train": str(tmp_path / f"rows.{kind}.gz")})
