use std::os::fd::OwnedFd;

use vfio_user::{Command, Errno};

use crate::support::{Bytes, Reply, Rig, VECTORS, bytes, event};

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;
const MSIX: u32 = 2;
const ERR: u32 = 3;
const REQ: u32 = 4;

fn set(flags: u32, index: u32, start: u32, count: u32) -> Bytes {
    bytes().u32(20).u32(flags).u32(index).u32(start).u32(count)
}

fn events(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| event()).collect()
}

fn call(rig: &mut Rig, body: Bytes, fds: Vec<OwnedFd>) -> Option<u32> {
    let reply = rig.call_with(Command::DEVICE_SET_IRQS, body, fds);
    assert!(reply.body.is_empty());
    reply.errno()
}

fn assigned(rig: &Rig) -> Vec<u32> {
    (0..VECTORS).filter(|&vector| rig.device.vectors.eventfd(vector).is_some()).collect()
}

#[test]
fn eventfds_are_assigned_to_their_vectors() {
    let mut rig = Rig::new();
    assert_eq!(call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 3, 2), events(2)), None);
    assert_eq!(assigned(&rig), [3, 4]);
    assert_eq!(call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 48, 16), events(16)), None);
    assert_eq!(assigned(&rig).len(), 18);
}

#[test]
fn msix_is_enabled_without_an_eventfd_as_qemu_does() {
    let mut rig = Rig::new();
    assert_eq!(call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 0, 1), Vec::new()), None);
    assert!(rig.device.vectors.enabled());
    assert!(assigned(&rig).is_empty());
}

#[test]
fn run_without_eventfds_takes_them_from_that_run_alone() {
    let mut rig = Rig::new();
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 0, 8), events(8));
    assert_eq!(call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 2, 3), Vec::new()), None);
    assert_eq!(assigned(&rig), [0, 1, 5, 6, 7]);
}

#[test]
fn disable_removes_every_eventfd_and_what_is_pending() {
    let mut rig = Rig::new();
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 0, 8), events(8));
    assert!(rig.device.vectors.fire(20).is_none());
    assert_eq!(call(&mut rig, set(NONE | TRIGGER, MSIX, 0, 0), Vec::new()), None);
    assert!(assigned(&rig).is_empty() && !rig.device.vectors.enabled());
    assert!(!rig.device.vectors.pending(20));
}

#[test]
fn vector_without_eventfd_latches_and_fires_once_when_it_gets_one() {
    let mut rig = Rig::new();
    assert!(rig.device.vectors.fire(5).is_none());
    assert!(rig.device.vectors.fire(5).is_none());
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 4, 2), events(2));
    assert_eq!(rig.device.signalled, [5]);
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 4, 2), events(2));
    assert_eq!(rig.device.signalled, [5]);
}

#[test]
fn trigger_by_none_and_bool_fires_the_chosen_vectors() {
    let mut rig = Rig::new();
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 0, 4), events(4));
    assert_eq!(call(&mut rig, set(NONE | TRIGGER, MSIX, 1, 2), Vec::new()), None);
    assert_eq!(rig.device.signalled, [1, 2]);
    let body = set(BOOL | TRIGGER, MSIX, 0, 4).raw(&[1, 0, 0, 2]);
    assert_eq!(call(&mut rig, body, Vec::new()), None);
    assert_eq!(rig.device.signalled, [1, 2, 0, 3]);
}

#[test]
fn masked_vector_latches_until_it_is_unmasked() {
    let mut rig = Rig::new();
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 0, 4), events(4));
    assert_eq!(call(&mut rig, set(NONE | MASK, MSIX, 0, 2), Vec::new()), None);
    assert!(rig.device.vectors.fire(0).is_none());
    assert!(rig.device.vectors.fire(2).is_some());
    let body = set(BOOL | UNMASK, MSIX, 0, 2).raw(&[1, 0]);
    assert_eq!(call(&mut rig, body, Vec::new()), None);
    assert_eq!(rig.device.signalled, [0]);
    assert!(rig.device.vectors.masked(1) && !rig.device.vectors.masked(0));
}

#[test]
fn eventfds_of_masking_are_accepted_and_do_not_become_triggers() {
    for action in [MASK, UNMASK] {
        let mut rig = Rig::new();
        assert_eq!(call(&mut rig, set(EVENTFD | action, MSIX, 0, 2), events(2)), None);
        assert!(assigned(&rig).is_empty());
    }
}

#[test]
fn req_takes_an_eventfd_and_err_can_be_disabled_only() {
    let mut rig = Rig::new();
    assert_eq!(call(&mut rig, set(EVENTFD | TRIGGER, REQ, 0, 1), events(1)), None);
    assert_eq!(call(&mut rig, set(EVENTFD | TRIGGER, REQ, 0, 1), Vec::new()), None);
    assert_eq!(call(&mut rig, set(NONE | TRIGGER, ERR, 0, 0), Vec::new()), None);
    let assign = set(EVENTFD | TRIGGER, ERR, 0, 1);
    assert_eq!(call(&mut rig, assign, events(1)), Some(Errno::EINVAL.0));
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let mut rig = Rig::new();
    call(&mut rig, set(EVENTFD | TRIGGER, MSIX, 0, 2), events(2));
    for (what, body, fds) in [
        ("short", bytes().u32(8).u32(0), 0),
        ("argsz", bytes().u32(3).u32(NONE | TRIGGER).u32(MSIX).u32(0).u32(0), 0),
        ("index", set(NONE | TRIGGER, 5, 0, 0), 0),
        ("two actions", set(NONE | MASK | UNMASK, MSIX, 0, 1), 0),
        ("no action", set(NONE, MSIX, 0, 1), 0),
        ("two kinds of data", set(NONE | BOOL | MASK, MSIX, 0, 1), 0),
        ("no kind of data", set(TRIGGER, MSIX, 0, 1), 0),
        ("reserved flags", set(NONE | TRIGGER | 64, MSIX, 0, 1), 0),
        ("past the end", set(NONE | TRIGGER, MSIX, VECTORS - 1, 2), 0),
        ("behind the end", set(EVENTFD | TRIGGER, MSIX, VECTORS, 1), 1),
        ("overflow", set(NONE | TRIGGER, MSIX, u32::MAX, 2), 0),
        ("huge count", set(EVENTFD | TRIGGER, MSIX, 0, u32::MAX), 0),
        ("disable from 1", set(NONE | TRIGGER, MSIX, 1, 0), 0),
        ("mask of nothing", set(NONE | MASK, MSIX, 0, 0), 0),
        ("bool of nothing", set(BOOL | TRIGGER, MSIX, 0, 0), 0),
        ("eventfd of nothing", set(EVENTFD | TRIGGER, MSIX, 0, 0), 0),
        ("mask of req", set(NONE | MASK, REQ, 0, 1), 0),
        ("req past its one", set(NONE | TRIGGER, REQ, 0, 2), 0),
        ("descriptor with none", set(NONE | TRIGGER, MSIX, 0, 1), 1),
        ("descriptor with bool", set(BOOL | TRIGGER, MSIX, 0, 1).raw(&[1]), 1),
        ("too few descriptors", set(EVENTFD | TRIGGER, MSIX, 0, 2), 1),
        ("too many descriptors", set(EVENTFD | TRIGGER, MSIX, 0, 1), 2),
        ("bool too short", set(BOOL | TRIGGER, MSIX, 0, 2).raw(&[1]), 0),
        ("bool too long", set(BOOL | TRIGGER, MSIX, 0, 2).raw(&[1, 1, 1]), 0),
    ] {
        assert_eq!(call(&mut rig, body, events(fds)), Some(Errno::EINVAL.0), "{what}");
        assert_eq!(assigned(&rig), [0, 1], "{what}");
        assert!(rig.device.signalled.is_empty(), "{what}");
    }
}

#[test]
fn deferred_request_is_answered_when_it_is_done() {
    let mut rig = Rig::new();
    rig.device.defer = true;
    let body = set(NONE | TRIGGER, MSIX, 0, 0);
    let outcome = rig.send(Command::DEVICE_SET_IRQS, 0, body, Vec::new());
    assert_eq!(Reply::of(rig.finish(outcome, Ok(()))).errno(), None);
}
