"""The table of faults in docs/contract.md is that of the protections, and each of them can still be removed."""

from faults.protections import read_rows, table, without
from support.paths import ROOT


def test_the_contract_has_the_table() -> None:
    assert table(read_rows()) in (ROOT / "docs" / "contract.md").read_text()


def test_each_protection_is_there_to_be_removed() -> None:
    for row in read_rows():
        assert without(row, ROOT) != (ROOT / row.file).read_text(), row.happens
