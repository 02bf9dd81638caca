"""The table of a paper: whole rows, the best in bold, text that LaTeX takes."""

import re

import pytest

from benchmarks.latex import latex_table, latex_text

RECORDS = {("float", None, 13): 0.7, ("float", None, 14): 0.72, ("itq", 16, 13): 0.6,
           ("itq", 16, 14): 0.62, ("itq", 64, 13): 0.8, ("best", 16, 13): 0.75,
           ("best", 16, 14): 0.77, ("best", 64, 13): 0.79}


class Sure:
    """Intervals that are known of codes of 16 bits."""

    def interval(self, name, bits):
        return (0.5, 0.544) if bits == 16 else None


def cells(table):
    """The cells of each row, by the method's name."""
    rows = [line[:-2].split("&") for line in table.splitlines() if line.endswith(r"\\")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_each_method_is_a_row_of_as_many_cells_as_there_are_columns():
    records = {key: {"map": value, "R": 90} for key, value in RECORDS.items()}
    records["best", 64, 13]["warnings"] = ["dark images"]
    table = latex_table(records, "R&D, 100 %", Sure())
    found = cells(table)
    assert found.pop("method") == ["floats", "16 bits", "64 bits"]
    assert r"\begin{tabular}{lccc}" in table
    part = r" {\scriptsize(1 of 2 seeds)}"
    sure = r"{\scriptsize$\,\pm\,$0.022}"
    assert found == {"float features, centred cosine": ["0.710", "", ""],
                     "ITQ": ["", f"0.610{sure}", rf"\textbf{{0.800}}{part}"],
                     r"MrHash, \texttt{-{}-preset best}":
                         ["", rf"\textbf{{0.760}}{sure}", f"0.790$^*${part}"]}
    assert r"\caption{R\&D, 100 \%: mAP@90" in table and "mean of 2 seeds" in table
    assert "$^*$ With a warning" in table and table.startswith(r"% \usepackage{booktabs}")
    assert table.count("{") == table.count("}")
    assert set(re.findall(r"\\(\w+)rule", table)) == {"top", "mid", "bottom"}


@pytest.mark.parametrize(("text", "wanted"), [
    ("a_b 50% & #1 $2 {x}", r"a\_b 50\% \& \#1 \$2 \{x\}"), ("a\\b~c^d", "a" r"\textbackslash{}b"
                                                      r"\textasciitilde{}c\textasciicircum{}d"),
    ("`--views 8` of `x_y`", r"\texttt{-{}-views 8} of \texttt{x\_y}")])
def test_no_letter_means_anything_to_latex(text, wanted):
    assert latex_text(text) == wanted
