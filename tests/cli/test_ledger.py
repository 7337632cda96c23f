"""`postmill ledger why` tells the fate of rows that were passed on, too."""

from pathlib import Path

import pytest
import token_tables

from postmill.cli.ledger import run


def test_a_row_that_no_stage_touched_is_found_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = token_tables.to_batches(token_tables.random_rows(0, 20))
    tokens = token_tables.write_tokens(tmp_path / "tokens", batches)
    row_id = batches[1]["row_id"][2].as_py().hex()
    assert run(["why", row_id[:12], str(tokens)]) == 0
    ordinal = batches[0].num_rows + 2
    assert capsys.readouterr().out == f"kept whole by every stage: {tokens}/tokens.arrow row {ordinal}, id {row_id}\n"
