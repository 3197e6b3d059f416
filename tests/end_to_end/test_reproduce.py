"""``lora-lab reproduce`` on a random model: every section trains, is judged and is shown; the same command goes on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from lora_lab.article import sections

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_all_sections_in_the_smoke_budget(lora_lab: Run, tmp_path: Path) -> None:
    done = lora_lab("reproduce", "--budget", "smoke", "--md", "article.md", timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    folder = tmp_path / "runs" / "article-smoke"
    evidence = json.loads((folder / "evidence.json").read_text())
    assert list(evidence["sections"]) == [section.id for section in sections()]
    assert evidence["model"] == "tiny" and evidence["command"] == "lora-lab reproduce --budget smoke --md article.md"
    for section in sections():
        tree = evidence["sections"][section.id]
        assert len(tree["verdicts"]) == len(section.claims) and tree["tables"], section.id
        for verdict in tree["verdicts"]:
            if "too little to lose" not in verdict["test"]:  # a random model answers no sum
                assert not verdict["test"].startswith("not testable"), verdict["sentence"]
            assert verdict["sentence"] in done.stdout
        assert not [note for note in tree["notes"] if "FAILED" in note or "no results" in note], tree["notes"]
    page = (tmp_path / "article.md").read_text()
    assert "Not yet run here" not in page and page.count("\n## ") == len(sections())

    again = lora_lab("reproduce", "Q5", "--budget", "smoke", "--json")
    assert again.returncode == 0, again.stderr
    assert "Nothing is left to do: all 16 runs are settled." in again.stderr
    assert list(json.loads(again.stdout)["sections"]) == list(evidence["sections"]), "what was found before is kept"


def test_a_dry_run_trains_nothing_and_bad_words_are_refused(lora_lab: Run, tmp_path: Path) -> None:
    plan = lora_lab("reproduce", "1", "6", "--budget", "smoke", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    rows = [line.split() for line in plan.stdout.splitlines()]
    assert ["1_consistency", "6", "0", "24"] in [row[:4] for row in rows]
    assert ["6_layers", "4", "0", "16"] in [row[:4] for row in rows]
    assert not list((tmp_path / "runs").glob("*/*/sweep.json"))
    for words, said in [
        (["Q55"], "no section 'Q55' of the article; did you mean"),
        (["1", "--data", "none.json"], "no file 'none.json'"),
        (["1", "optimizer.lrr=1"], "no config key 'optimizer.lrr'"),
        (["1", "--budget", "tiny"], "invalid choice: 'tiny'"),
    ]:
        refused = lora_lab("reproduce", *words)
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr
