"""Simulated time."""

from functools import partial

from cluster.simulation.events import Events


def test_what_was_asked_for_first_comes_first_at_the_same_time() -> None:
    events, seen = Events(), list[str]()
    events.at(2.0, partial(seen.append, "last"))
    events.at(1.0, partial(seen.append, "a"))
    events.after(1.0, partial(seen.append, "b"))
    events.run()
    assert seen == ["a", "b", "last"]
    assert events.now == 2.0


def test_a_schedule_is_as_if_all_of_it_had_been_asked_for_at_once() -> None:
    times = (0.5, 1.0, 1.0, 2.0)

    def seen(*, follows: bool) -> list[tuple[float, str]]:
        events, log = Events(), list[tuple[float, str]]()

        def note(name: str) -> None:
            log.append((events.now, name))
            if name.startswith("entry"):
                events.after(0.5, partial(note, f"after {name}"))

        schedule = [(at, partial(note, f"entry {i}")) for i, at in enumerate(times)]
        events.at(1.0, partial(note, "before"))
        if follows:
            events.follow(schedule)
        else:
            for time_s, action in schedule:
                events.at(time_s, action)
        events.at(1.0, partial(note, "behind"))
        events.run()
        return log

    assert seen(follows=True) == seen(follows=False)
    assert len(seen(follows=True)) == 2 * len(times) + 2


def test_an_empty_schedule_is_nothing() -> None:
    events = Events()
    events.follow([])
    events.run()
    assert events.now == 0.0
