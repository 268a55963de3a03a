"""Columns of a copy in v3.0 under other names: those that LeRobot knows, where state or action were recorded under others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.training.recording_files import parquet_files
from zk0desk.training.recording_info import read_json
from zk0desk.training.repair_tables import Tell, rewrite

if TYPE_CHECKING:
    import pyarrow as pa

DESCRIBES = (b"huggingface", b"pandas")
"""What libraries keep of a table's columns beside them: it names them as they were."""


def rename(folder: Path, names: Mapping[str, str], tell: Tell) -> None:
    """Give columns of the recording in `folder` other names (old: new): in its data, its statistics, and its description."""

    def renamed(table: pa.Table) -> pa.Table:
        table = table.rename_columns([_new(column, names) for column in table.column_names])
        return table.replace_schema_metadata({k: v for k, v in (table.schema.metadata or {}).items() if k not in DESCRIBES})

    files = [*parquet_files(folder / "data"), *parquet_files(folder / "meta" / "episodes")]
    for place, path in enumerate(files):
        tell(place / len(files))
        rewrite(path, renamed)
    for path in (folder / "meta" / "info.json", folder / "meta" / "stats.json"):
        if path.is_file():
            said = read_json(path, 64 * 2**20)
            columns = said["features"] if path.name == "info.json" else said
            new = {names.get(key, key): value for key, value in columns.items()}
            said = said | {"features": new} if path.name == "info.json" else new
            path.write_text(json.dumps(said, indent=4, ensure_ascii=False), encoding="utf-8")


def _new(column: str, names: Mapping[str, str]) -> str:
    """A column's new name; the table of episodes has columns such as `stats/state/mean`, too."""
    if column.startswith("stats/"):
        _, key, word = column.split("/", 2) if column.count("/") == 2 else ("", "", "")
        return f"stats/{names[key]}/{word}" if key in names else column
    return names.get(column, column)
