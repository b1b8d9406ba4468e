//! How long a lease is polled, and what ends a sleep.

use super::*;

/// Whether a thread that sleeps upon the lease is woken.
fn wakes(lease: &LeasedDrive) -> bool {
    let event = lease.event().expect("a lease that is parked, and whose drive interrupts");
    let mut fds = [nix::poll::PollFd::new(event, nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() > 0
}

const MICROSECOND: u64 = 1000;
const MILLISECOND: u64 = 1_000_000;

#[test]
fn a_slow_drive_is_slept_upon_until_it_interrupts() {
    let event = EventFd::create().unwrap();
    let (mut world, mut lease) = world_with(Some(&event));
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 512)];
    let holder = |world: &World| world.segment.holder.sleeps.load(Ordering::Relaxed);
    assert!(lease.deadline().is_none() && lease.park(), "there is nothing to wait for");
    lease.unpark();
    assert_eq!(holder(&world), 0);
    world.segment.lender.interrupts.store(1, Ordering::Release);
    // What is signalled while nobody sleeps wakes nobody.
    event.signal().unwrap();
    let mut now = MILLISECOND;
    for round in 0..3 {
        let read = request(Op::Read, 0, 512, &ranges, round);
        assert_eq!(lease.submit(&read, &world.table, now), Submitted::Pending);
        lease.publish();
        if round == 0 {
            assert_eq!(poll(&mut lease, now + 100 * MICROSECOND), []);
            assert!(lease.deadline() <= Some(now + 100 * MICROSECOND), "it may be fast");
            now += 300 * MICROSECOND;
            assert_eq!(poll(&mut lease, now), []);
            assert!(!lease.park(), "interrupts are on, which changes the deadline");
            assert_eq!(holder(&world) & 1, 1);
            lease.unpark();
        }
        assert_eq!(lease.deadline(), Some(now + 100 * MILLISECOND));
        assert!(lease.park() && !wakes(&lease));
        assert_eq!(holder(&world) & 1, 1);
        assert_eq!(world.run_all(), 1);
        event.signal().unwrap();
        assert!(wakes(&lease));
        lease.unpark();
        assert_eq!((holder(&world) & 1, lease.event().is_none()), (0, true));
        now += 2 * MILLISECOND;
        assert_eq!(poll(&mut lease, now), [(round, Ok(()))]);
        assert!(lease.deadline().is_none());
    }
    assert_eq!(holder(&world), 8, "slept upon three times, and tried once");
}

#[test]
fn a_sleep_is_short_without_interrupts_and_what_is_there_is_not_slept_upon() {
    let event = EventFd::create().unwrap();
    let (mut world, mut lease) = world_with(Some(&event));
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 512)];
    let read = request(Op::Read, 0, 512, &ranges, 1);
    assert_eq!(lease.submit(&read, &world.table, 1), Submitted::Pending);
    lease.publish();
    let mut last = 0;
    for waited in [1, 10, 100, 10_000] {
        let now = waited * MILLISECOND;
        assert_eq!(poll(&mut lease, now), []);
        let nap = lease.deadline().unwrap() - now;
        assert!(nap >= last && nap <= (now / 8).max(MILLISECOND), "{nap} ns after {now}");
        last = nap;
        assert!(lease.park() && lease.event().is_none(), "nobody interrupts");
        lease.unpark();
    }
    assert_eq!(last, 100 * MILLISECOND, "its bound");
    assert_eq!(world.run_all(), 1);
    assert!(!lease.park());
    lease.unpark();
    let down = lease_state::STEP | lease_state::DOWN;
    assert_eq!(poll(&mut lease, 20_000 * MILLISECOND), [(1, Ok(()))]);
    assert_eq!(lease.submit(&read, &world.table, 20_000 * MILLISECOND), Submitted::Pending);
    lease.publish();
    world.set_state(down);
    assert!(!lease.park(), "the lender's word is to be followed");
    lease.unpark();
    world.set_state(lease_state::UP);
    assert_eq!(poll(&mut lease, 20_001 * MILLISECOND), []);
    lease.set_lost();
    // Nobody switches interrupts on any more: what the drive still does is looked for.
    assert_eq!(lease.deadline(), Some(20_002 * MILLISECOND));
}

#[test]
fn polling_goes_on_while_it_pays() {
    let event = EventFd::create().unwrap();
    let (mut world, mut lease) = world_with(Some(&event));
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 512)];
    let mut now = 0;
    // Whether the drive interrupts, how long a command took, and whether the next is polled for longer than any thread
    // does. What ends a nap without interrupts is its length, which says nothing of the drive.
    for (heard, took, polled) in [
        (1, 80, true),
        (1, 2000, false),
        (1, 2000, false),
        (1, 90, true),
        (1, 80, true),
        (0, 2000, true),
        (0, 80, true),
        (1, 2000, false),
    ] {
        world.segment.lender.interrupts.store(heard, Ordering::Release);
        let read = request(Op::Read, 0, 512, &ranges, 1);
        assert_eq!(lease.submit(&read, &world.table, now), Submitted::Pending);
        lease.publish();
        assert_eq!(poll(&mut lease, now + 60 * MICROSECOND), []);
        if lease.deadline() > Some(now + 60 * MICROSECOND) || took > 250 {
            lease.park();
            lease.unpark();
        }
        assert_eq!(world.run_all(), 1);
        now += took * MICROSECOND;
        assert_eq!(poll(&mut lease, now), [(1, Ok(()))]);
        assert_eq!(lease.submit(&read, &world.table, now), Submitted::Pending);
        lease.publish();
        assert_eq!(poll(&mut lease, now + 60 * MICROSECOND), []);
        let polls = lease.deadline() <= Some(now + 60 * MICROSECOND);
        assert_eq!(polls, polled, "after {took} us");
        assert_eq!(world.run_all(), 1);
        now += 60 * MICROSECOND;
        assert_eq!(poll(&mut lease, now), [(1, Ok(()))]);
    }
    let (world, mut lease) = self::world();
    place(&world, GUEST_IOVA);
    let read = request(Op::Read, 0, 512, &ranges, 1);
    assert_eq!(lease.submit(&read, &world.table, now), Submitted::Pending);
    assert_eq!(poll(&mut lease, now + 1000 * MILLISECOND), []);
    assert_eq!(lease.deadline(), Some(0), "a drive that does not interrupt");
}
