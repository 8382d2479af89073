"""The README says what the package does and what the result files say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 5
    names = {}  # later blocks go on with what earlier ones made
    for block in blocks:
        if '"cuda"' in block:
            continue  # tests/gpu and the emulated suite run what it shows
        if "import torch" in block and not importlib.util.find_spec("torch"):
            continue
        exec(compile(block, "README.md", "exec"), names)


def test_tables_are_made_from_the_result_files():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/readme_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.with_tables(README) == README, "run python benchmarks/readme_tables.py"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=str)
def test_result_files_have_the_schema(path):
    record = json.loads(path.read_text())
    assert {"machine", "versions", "date", "command", "rows"} <= set(record)
    assert {"device", "driver", "cpu", "cores", "memory_bytes"} <= set(record["machine"])
    for row in record["rows"]:
        assert row["mode"] in ("a", "b", "c")
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["seconds"]["runs"]
        assert {"network", "device", "gpus", "precision", "samples", "passed"} <= set(row)
