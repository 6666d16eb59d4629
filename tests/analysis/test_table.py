from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_tprune.analysis.recorded import RowVerdict
from edge_tprune.analysis.table import describe_differences, find_differences, group_rows


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from("12")), max_size=20))
def test_groups_are_a_partition_by_conditions(profiles, keys):
    rows = [profiles.row(str(index), conditions=dict(zip(("host", "CPU", "threads"), key))) for index, key in enumerate(keys)]
    groups = group_rows(rows)
    assert sorted(row.budget for each in groups for row in each.rows) == sorted(row.budget for row in rows)
    for each in groups:
        assert all(row.conditions == each.conditions for row in each.rows)
        assert find_differences(each.rows) == {}
    assert len(groups) == len(set(keys))
    assert (find_differences(rows) == {}) == (len(set(keys)) < 2)


def test_differences_in_words(profiles):
    rows = [
        profiles.row(conditions={"host": "a", "threads": "1", "CPU": "x"}),
        profiles.row(conditions={"host": "b", "threads": "2", "CPU": "x"}),
    ]
    assert describe_differences(find_differences(rows)) == "host (a, b) and threads (1, 2)"
    assert describe_differences(find_differences(rows[:1])) == ""
    assert describe_differences({"host": ("a" * 100,)}, limit=10) == f"host ({'a' * 9}…)"


def test_a_row_says_whether_its_measurement_is_invalid_or_suspect(profiles):
    assert profiles.row(verdict=RowVerdict("invalid", ("throttled",))).invalid
    assert profiles.row(verdict=RowVerdict("suspect")).suspect == "not said why"
    plain = profiles.row()
    assert not plain.invalid
    assert plain.suspect is None
