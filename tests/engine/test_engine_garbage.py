import gc

from lora_lab.engine import garbage


def test_a_step_is_spared_and_everything_is_as_it_was_afterwards():
    before = gc.get_freeze_count()
    with garbage.spared():
        assert gc.get_freeze_count() > before
        with garbage.later():
            assert not gc.isenabled()
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_who_collects_by_himself_is_left_alone():
    gc.disable()
    try:
        with garbage.later():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
