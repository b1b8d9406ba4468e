//! Asynchronous events: requests, masks, log pages.

use crate::host::{ENTRIES, Host, admin, namespace};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::feature::FeatureId;
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::log_page::{ChangedNamespaces, LogPageId};
use nvme_spec::{Nsid, Status};
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

pub fn request() -> Command {
    admin(AdminOpcode::ASYNC_EVENT_REQUEST)
}

/// A host that wants to hear of namespaces, and said so.
pub fn listening() -> Host {
    let mut host = Host::enabled();
    host.run(crate::feature::set(FeatureId::ASYNC_EVENT_CONFIGURATION, 1 << 8));
    host
}

fn add(host: &mut Host, nsid: u32) {
    host.subsystem.add_namespace(namespace(nsid, 1 << 20)).unwrap();
    host.call(|controller, cx| controller.subsystem_changed(cx));
}

fn changed(host: &mut Host, retain: bool) -> Vec<u32> {
    let mut command = crate::log_page::log(LogPageId::CHANGED_NAMESPACES, 4096);
    command.cdw10 |= u32::from(retain) << 15;
    let bytes = host.fetch(command, 4096).unwrap();
    ChangedNamespaces::read_from_bytes(&bytes).unwrap().0.iter().map(|nsid| nsid.0).collect()
}

#[test]
fn a_request_waits_for_an_event() {
    let mut host = listening();
    let cid = host.submit(request());
    host.process();
    assert!(host.completion().is_none());
    host.effects();
    add(&mut host, 5);
    let entry = host.completion().unwrap();
    assert_eq!((entry.cid, entry.dw0), (cid, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits()));
    assert!(host.effects().contains(&nvme::Effect::Signal { vector: 0 }));
}

#[test]
fn an_event_waits_for_a_request() {
    let mut host = listening();
    add(&mut host, 5);
    let entry = host.run(request());
    assert_eq!(entry.dw0, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits());
}

#[test]
fn a_type_is_masked_until_its_page_is_read() {
    let mut host = listening();
    add(&mut host, 5);
    host.run(request());
    let cid = host.submit(request());
    host.process();
    add(&mut host, 6);
    add(&mut host, 7);
    assert!(host.completion().is_none(), "masked");
    assert_eq!(changed(&mut host, true), [5, 6, 7]);
    assert!(host.completion().is_none(), "retained");
    assert_eq!(changed(&mut host, false), [5, 6, 7]);
    assert!(host.completion().is_none(), "the page told it all");
    assert_eq!(changed(&mut host, false), [0_u32; 0]);
    add(&mut host, 8);
    assert_eq!(host.completion().unwrap().cid, cid);
    assert_eq!(changed(&mut host, false), [8]);
}

#[test]
fn who_does_not_ask_is_not_told() {
    let mut host = Host::enabled();
    host.submit(request());
    host.process();
    add(&mut host, 5);
    assert!(host.completion().is_none());
    assert_eq!(changed(&mut host, false), [5]);
}

#[test]
fn no_more_requests_are_held_than_said() {
    let mut host = Host::enabled();
    for _ in 0..8 {
        host.submit(request());
    }
    host.process();
    assert!(host.completion().is_none());
    assert_eq!(host.status(request()), Status::AER_LIMIT_EXCEEDED);
}

#[test]
fn growing_and_removing_are_told_and_an_unchanged_namespace_is_not() {
    let mut host = listening();
    host.subsystem.resize_namespace(Nsid(1), 64 << 20).unwrap();
    host.call(|controller, cx| controller.subsystem_changed(cx));
    assert_eq!(changed(&mut host, false), [0_u32; 0]);
    host.subsystem.resize_namespace(Nsid(1), 128 << 20).unwrap();
    host.call(|controller, cx| controller.subsystem_changed(cx));
    assert_eq!(changed(&mut host, false), [1]);
    let row = &host.controller.segment().namespaces[0];
    assert_eq!(row.blocks.load(Ordering::Relaxed), (128 << 20) / 512);
    host.subsystem.remove_namespace(Nsid(1)).unwrap();
    host.call(|controller, cx| controller.subsystem_changed(cx));
    assert_eq!(changed(&mut host, false), [1]);
    assert_eq!(host.controller.segment().namespaces[0].state.load(Ordering::Relaxed), 0);
}

#[test]
fn bad_doorbells_are_told_by_page_once_per_value() {
    let mut host = Host::enabled();
    host.doorbells.store(0, ENTRIES);
    host.process();
    host.process();
    host.doorbells.store(0, host.tail);
    let entry = host.run(request());
    assert_eq!(entry.dw0, AsyncEvent::INVALID_DOORBELL_VALUE.into_bits());
    host.fetch(crate::log_page::log(LogPageId::ERROR_INFORMATION, 64), 64).unwrap();
    let held = host.submit(request());
    host.process();
    assert!(host.completion().is_none());
    host.doorbells.store(1, ENTRIES + 5);
    host.process();
    host.doorbells.store(1, host.head);
    host.process();
    assert_eq!(host.completion().unwrap().cid, held);
}

#[test]
fn a_head_past_what_was_posted_is_an_error_and_moves_nothing() {
    let mut host = Host::enabled();
    host.doorbells.store(1, 7);
    host.process();
    host.doorbells.store(1, 0);
    let entry = host.run(request());
    assert_eq!(entry.dw0, AsyncEvent::INVALID_DOORBELL_VALUE.into_bits());
}

#[test]
fn what_workers_report_of_doorbells_is_told() {
    let mut host = Host::enabled();
    host.run(crate::queue::create_cq(1));
    host.run(crate::queue::create_sq(1, 1));
    let segment = host.controller.segment().clone();
    let row = &segment.submission_queues[1];
    let worker = row.worker.load(Ordering::Relaxed) as usize;
    let position = &host.workers[worker].queues.submission_queues[1];
    position.invalid_doorbell.store(1000, Ordering::Release);
    host.call(|controller, cx| controller.poll(cx));
    assert_eq!(segment.admin.pending_events.load(Ordering::Relaxed), 0, "of an earlier queue");
    let position = &host.workers[worker].queues.submission_queues[1];
    position.generation.store(row.generation.load(Ordering::Relaxed), Ordering::Relaxed);
    let entry = host.run(request());
    assert_eq!(entry.dw0, AsyncEvent::INVALID_DOORBELL_VALUE.into_bits());
    host.fetch(crate::log_page::log(LogPageId::ERROR_INFORMATION, 64), 64).unwrap();
    host.submit(request());
    host.process();
    assert!(host.completion().is_none(), "told once");
}
