"""What the gateway grants to whom."""

from zk0desk.federation.gateway_limits import MIB, Doors, Limits, Pace, Uploads, Visit, body_limits, neighbourhood, upload_limit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_pace_gives_its_burst_and_then_so_many_a_second():
    clock = Clock()
    pace = Pace(10, 3, clock=clock)
    assert [pace.wait("a") for _ in range(3)] == [0, 0, 0]
    assert pace.wait("a") > 0 and pace.wait("b") == 0
    clock.now = 0.2
    assert [pace.wait("a") for _ in range(3)][:2] == [0, 0] and pace.wait("a") > 0
    assert 0 < pace.wait("a", patience=1.0) <= 0.1 < pace.wait("a", patience=1.0), "what is waited for is taken"


def test_a_pace_remembers_a_bounded_number_of_names():
    pace = Pace(1, 1, names=100, clock=Clock())
    for name in range(10_000):
        pace.wait(name)
    assert len(pace._left) == 100


def visits(doors: Doors, gone: list[int], address: str, numbers: range) -> list[Visit]:
    made = [Visit(address, lambda n=n: gone.append(n)) for n in numbers]
    for visit in made:
        doors.enter(visit)
    return made


def test_the_oldest_stranger_of_an_address_goes_for_a_new_one_of_it():
    doors, gone = Doors(Limits(strangers=100, strangers_per_address=3)), []
    visits(doors, gone, "a", range(5))
    assert gone == [0, 1] and len(doors) == 3


def test_when_there_are_too_many_strangers_the_address_with_most_has_to_make_room():
    doors, gone = Doors(Limits(strangers=6, strangers_per_address=10)), []
    visits(doors, gone, "greedy", range(5))
    visits(doors, gone, "quiet", range(10, 13))
    assert gone == [0, 1] and len(doors) == 6


def test_a_nodes_connections_are_not_taken_by_strangers_and_are_its_own_number():
    doors, gone = Doors(Limits(strangers=2, strangers_per_address=2, per_key=2)), []
    for number in range(3):
        (visit,) = visits(doors, gone, "a", range(number, number + 1))
        assert doors.known(visit, b"key") and doors.known(visit, b"key")
    assert gone == [0], "the third connection of the key took the place of its first"
    visits(doors, gone, "a", range(10, 20))
    assert gone == [0, *range(10, 18)] and len(doors) == 4


def test_a_connection_is_one_keys_only():
    doors, gone = Doors(Limits()), []
    (visit,) = visits(doors, gone, "a", range(1))
    assert doors.known(visit, b"key") and not doors.known(visit, b"other")
    doors.leave(visit)
    assert len(doors) == 0 and not doors._nodes and not doors._by_address


def test_nodes_are_so_many_and_one_that_is_inside_stays_so():
    doors, gone = Doors(Limits(nodes=2)), []
    a, b, c = visits(doors, gone, "a", range(3))
    assert doors.known(a, b"1") and doors.known(b, b"2") and not doors.known(c, b"3") and doors.known(c, b"1")


def test_one_computer_is_one_address():
    assert neighbourhood("203.0.113.9") == "203.0.113.9" == neighbourhood("::ffff:203.0.113.9")
    assert neighbourhood("2001:db8:1:2:3::1") == neighbourhood("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert neighbourhood("fe80::1%eth0") == "fe80::/64"


def test_bodies_are_as_large_as_the_policy_needs_and_no_larger():
    tiny, full = body_limits(330), body_limits(99_880_992)
    assert len(tiny) == 12 and tiny["/v1/fleet/push-object"] < 70_000 and max(tiny.values()) < 2**17
    assert full["/v1/fleet/push-object"] > 5 * MIB + 4096, "flwr cuts an array into chunks of 5 MiB"
    assert full["/v1/fleet/pull-messages"] == tiny["/v1/fleet/pull-messages"] <= 2**14


def test_a_node_pushes_what_an_instruction_needs_and_no_more():
    clock = Clock()
    uploads = Uploads(upload_limit(1000), clock=clock)
    assert uploads.take(b"a", 3 * 4000 + MIB) and not uploads.take(b"a", 3 * MIB) and uploads.take(b"b", 3 * MIB)
    uploads.instructed(b"a")
    assert uploads.take(b"a", 3 * MIB) and not uploads.take(b"a", MIB)
    clock.now = 3601.0
    assert uploads.take(b"a", 3 * MIB)
