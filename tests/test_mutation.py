"""Which mutants the mutation run tries, and with which tests it meets them."""

from __future__ import annotations

import pytest

pytest.importorskip("cosmic_ray", reason="needs the optional group mutation")

from _mutants import mutants_of, reaching

SOURCE = '''from __future__ import annotations


@property
def f(a: int | None, *, b: float = 1 * 2) -> float | None:
    """Add."""
    while a < b:
        a += (
            1
        )
    return a
'''


def test_mutants_differ_when_run_and_are_drawn_anew() -> None:
    every = mutants_of(SOURCE, None, 0)
    assert {mutant.line for mutant in every} == {4, 5, 7, 9}
    assert len({mutant.code for mutant in every}) == len(every)
    changes = {(mutant.before, mutant.after) for mutant in every}
    assert {("while a < b:", "while a <= b:"), ("a += ( 1", "a += ( 2")} <= changes
    assert all("int | None, *, b: float" in mutant.code for mutant in every)
    for mutant in every:
        compile(mutant.code, "<mutant>", "exec")
    some = [mutants_of(SOURCE, 5, seed) for seed in (0, 0, 1)]
    assert [len(mutants) for mutants in some] == [5, 5, 5]
    assert some[0] == some[1] != some[2]
    assert all(mutant in every for mutants in some for mutant in mutants)


def test_what_the_compiler_warns_of_is_no_mutant() -> None:
    found = {mutant.after for mutant in mutants_of('x = y == "a"\n', None, 0)}
    assert 'x = y != "a"' in found and not any(" is " in after for after in found)


def test_a_mutant_meets_reaching_its_statement() -> None:
    reached = {4: [""], 5: [""], 7: ["one", "two"], 8: ["one"], 9: ["three"], 11: ["two", "four"]}
    assert reaching(SOURCE, 8, reached) == reaching(SOURCE, 9, reached) == {"one", "three"}
    assert reaching(SOURCE, 7, reached) == {"one", "two"}
    assert reaching(SOURCE, 11, reached) == {"two", "four"}
    assert reaching(SOURCE, 4, reached) == {"one", "two", "three", "four"}  # run at import
    assert reaching(SOURCE, 11, {}) == set()
