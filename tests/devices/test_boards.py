"""What the emulated boards say of themselves is what edgeawq recognizes on real ones."""

from __future__ import annotations

import pytest

from device_profiles.detect import detect_from_facts
from tests.devices.boards import BOARDS, PI4, PI5, Board, find_board
from tests.devices.errors import EmulationError


@pytest.mark.parametrize("board, isa", [(PI4, "neon"), (PI5, "neon_dotprod")])
@pytest.mark.parametrize("has_device_tree", [True, False])
def test_each_is_recognized(board: Board, isa: str, has_device_tree: bool) -> None:
    model = board.model if has_device_tree else ""
    found = detect_from_facts(board.cpuinfo(), "aarch64", board.meminfo(), model)
    assert (found.profile, found.isa, found.cores) == (board.name, isa, 4)
    assert found.memory_bytes == board.memory_kb * 1024


def test_there_can_be_several_of_a_kind() -> None:
    assert {name: find_board(name) for name in BOARDS} == BOARDS
    assert find_board("pi4-left") is PI4


@pytest.mark.parametrize("name", ["pi9", "pi", "", "pi4-", "pi4/..", "pi4-a b", "PI4", "orin"])
def test_a_wrong_name_is_refused_with_the_right_ones(name: str) -> None:
    with pytest.raises(EmulationError) as caught:
        find_board(name)
    assert "pi4 and pi5" in caught.value.remedy
