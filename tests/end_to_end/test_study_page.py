"""The commands of docs/study.md do what the page says, in its order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from processes import start

PAGE = Path(__file__).parents[2] / "docs" / "study.md"


def test_the_page_can_be_followed(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 12
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "lora-lab"
        done = (
            start(tmp_path, *words, "data.train_size=32", "data.eval_size=8")
            if words[0] == "sweep"
            else start(tmp_path, *words)
        )
        assert done.wait() == 0, f"{line}\n{done.said()}"
    branches = sorted(path.parent.name for path in (tmp_path / "runs" / "rank_alpha").glob("runs/t1*/result.json"))
    assert branches == ["t100000-s1", "t100001-s0"]
