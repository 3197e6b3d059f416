"""Plain text: one UTF-8 file, taken as one stream of tokens and cut into blocks when it is tokenised."""

from __future__ import annotations

from lora_lab.data.reading import check_columns, read_text
from lora_lab.data.records import Passage
from lora_lab.spec import Pairs


def read(path: str, columns: Pairs, field: str = "data.path") -> list[Passage]:
    """The whole file as one passage, as it stands.

    Raises:
        DataError: see :func:`lora_lab.data.reading.read_text`; or columns are mapped, of which a text has none.
    """
    check_columns(columns, (), "text")
    return [Passage(read_text(path, field))]
