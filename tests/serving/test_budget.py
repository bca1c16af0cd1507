"""The budget of bytes: it is never passed, and who makes room for whom."""

from sasrec.serving.budget import Budget


class Body:
    """Holds bytes, and gives them back when it is told to."""

    def __init__(self, budget: Budget, *, is_arriving: bool = False, is_stuck: bool = False) -> None:
        self.budget, self.held = budget, 0
        self.is_arriving, self.is_stuck = is_arriving, is_stuck
        self.is_shed = False

    def take(self, n: int) -> bool:
        return self.budget.take(self, n)

    def shed(self) -> None:
        self.is_shed = True
        self.budget.give(self)


def test_what_has_come_whole_takes_the_room_of_what_waits_for_its_client_the_largest_first() -> None:
    budget = Budget(100)
    small, large, computed = Body(budget, is_stuck=True), Body(budget, is_stuck=True), Body(budget)
    assert small.take(20)
    assert large.take(50)
    assert computed.take(30)
    whole = Body(budget)
    assert whole.take(40)
    assert (small.is_shed, large.is_shed, computed.is_shed) == (False, True, False)
    assert whole.take(30)
    assert small.is_shed
    assert not Body(budget).take(1)  # the others wait for nobody but the server
    assert budget.used == 100
    for body in (whole, computed):
        budget.give(body)
    assert budget.used == 0


def test_a_body_that_arrives_takes_the_room_of_larger_ones_only() -> None:
    budget = Budget(100)
    other = Body(budget, is_arriving=True, is_stuck=True)
    assert other.take(60)
    assert not Body(budget, is_arriving=True, is_stuck=True).take(70)
    assert not other.is_shed
    newcomer = Body(budget, is_arriving=True, is_stuck=True)
    assert newcomer.take(50)
    assert other.is_shed
    assert budget.used == 50
    assert not newcomer.take(60)  # nor its own
    assert not newcomer.is_shed


def test_who_is_refused_does_not_look_at_all_that_hold_something() -> None:
    looks = 0

    class Busy(Body):
        @property
        def is_stuck(self) -> bool:
            nonlocal looks
            looks += 1
            return False

        @is_stuck.setter
        def is_stuck(self, value: bool) -> None:
            """It never is."""

    budget = Budget(1000)
    assert all(Busy(budget).take(1) for _ in range(1000))
    assert not any(Busy(budget).take(1) for _ in range(1000))
    assert looks < 100_000  # 1,000 for each of a few looks
