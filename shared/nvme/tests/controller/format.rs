//! Format NVM.

use crate::host::{Host, admin, namespace, subsystem};
use ipc::layout::controller::namespace_flags;
use nvme::{Controller, ControllerConfig, Effect, Request, ResetKind};
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::{Nsid, Status};
use std::sync::atomic::Ordering;

fn format(nsid: u32, cdw10: u32) -> Command {
    Command { nsid: Nsid(nsid), cdw10, ..admin(AdminOpcode::FORMAT_NVM) }
}

fn flags(host: &Host) -> u32 {
    host.controller.segment().namespaces[0].flags.load(Ordering::Relaxed)
}

#[test]
fn a_format_drains_erases_and_changes_the_row() {
    let mut host = Host::enabled();
    host.acknowledge();
    host.effects();
    let cid = host.submit(format(1, 1 << 9 | 1));
    host.process();
    assert_eq!(flags(&host), namespace_flags::FORMATTING);
    assert!(host.effects().contains(&Effect::SubsystemChanged));
    host.acknowledge_one(0);
    assert!(host.effects().is_empty(), "one worker may still write");
    host.acknowledge_one(1);
    let (ticket, request) = host.request();
    let (backend, bdev) = ("b0".to_string(), "bdev1".to_string());
    let expected = Request::Format { nsid: Nsid(1), backend, bdev, block_shift: 12, erase: true };
    assert_eq!(request, expected);
    assert_eq!(host.status(format(1, 0)), Status::FORMAT_IN_PROGRESS);
    assert!(host.subsystem.remove_namespace(Nsid(1)).is_err());
    host.complete(ticket, Ok(()));
    assert_eq!(flags(&host), 0);
    let row = &host.controller.segment().namespaces[0];
    assert_eq!(row.block_shift.load(Ordering::Relaxed), 12);
    assert_eq!(row.blocks.load(Ordering::Relaxed), (64 << 20) / 4096);
    assert!(host.completion().is_none());
    host.acknowledge();
    let entry = host.completion().unwrap();
    assert!(entry.cid == cid && entry.status().is_success());
}

#[test]
fn a_format_that_fails_changes_nothing() {
    let mut host = Host::enabled();
    host.effects();
    host.submit(format(1, 1));
    host.process();
    host.acknowledge();
    let (ticket, _) = host.request();
    host.complete(ticket, Err(Status::INTERNAL_ERROR));
    host.acknowledge();
    assert_eq!(host.completion().unwrap().status().code(), Status::INTERNAL_ERROR);
    assert_eq!(flags(&host), 0);
    assert_eq!(host.controller.segment().namespaces[0].block_shift.load(Ordering::Relaxed), 9);
}

#[test]
fn an_invalid_format_is_refused() {
    let mut host = Host::enabled();
    let read_only = nvme::NamespaceConfig { read_only: true, ..namespace(3, 1 << 20) };
    host.subsystem.add_namespace(read_only).unwrap();
    host.subsystem.add_namespace(namespace(4, 1024)).unwrap();
    let cases = [
        ("lba format", format(1, 2), Status::INVALID_FORMAT),
        ("protection information", format(1, 1 << 5), Status::INVALID_FORMAT),
        ("cryptographic erase", format(1, 2 << 9), Status::INVALID_FIELD),
        ("reserved erase", format(1, 7 << 9), Status::INVALID_FIELD),
        ("broadcast", format(u32::MAX, 0), Status::INVALID_FIELD),
        ("inactive", format(2, 0), Status::INVALID_FIELD),
        ("none", format(0, 0), Status::INVALID_NAMESPACE_OR_FORMAT),
        ("beyond", format(257, 0), Status::INVALID_NAMESPACE_OR_FORMAT),
        ("protected", format(3, 0), Status::NAMESPACE_WRITE_PROTECTED),
        ("too small", format(4, 1), Status::INVALID_FORMAT),
    ];
    for (what, command, status) in cases {
        assert_eq!(host.status(command), status, "{what}");
    }
}

#[test]
fn a_reset_before_the_backend_was_asked_cancels() {
    let mut host = Host::enabled();
    host.acknowledge();
    host.submit(format(1, 1));
    host.process();
    host.write32(nvme_spec::register::offset::CC, 0);
    assert_eq!(flags(&host), 0);
    host.acknowledge();
    host.effects();
    assert!(!host.controller.has_requests());
    host.enable();
    assert_eq!(host.controller.segment().namespaces[0].block_shift.load(Ordering::Relaxed), 9);
}

#[test]
fn a_format_outlives_the_client_that_asked_for_it() {
    let mut host = Host::enabled();
    host.effects();
    host.submit(format(1, 1));
    host.process();
    host.acknowledge();
    let (ticket, _) = host.request();
    host.reset(ResetKind::Disconnect);
    host.acknowledge();
    assert!(!host.controller.is_draining() && host.controller.has_requests());
    assert_eq!(flags(&host), namespace_flags::FORMATTING);
    host.complete(ticket, Ok(()));
    host.acknowledge();
    assert!(!host.controller.has_requests());
    assert_eq!(flags(&host), 0);
    host.call(|controller, cx| controller.power_on(cx));
    host.enable();
    assert!(host.completion().is_none());
    assert_eq!(host.subsystem.namespace(Nsid(1)).unwrap().config().block_shift, 12);
}

/// A second controller of a host's subsystem, which its own client uses.
fn sibling(host: &mut Host) -> Host {
    let mut other = Host::with(subsystem(), |_| {});
    let config = ControllerConfig {
        id: host.subsystem.add_controller().unwrap(),
        ..other.controller.config().clone()
    };
    other.controller = Controller::new(config, other.controller.segment().clone()).unwrap();
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    other.call(|controller, cx| controller.power_on(cx));
    other.enable();
    other
        .run(crate::feature::set(nvme_spec::feature::FeatureId::ASYNC_EVENT_CONFIGURATION, 1 << 8));
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    other
}

#[test]
fn every_controller_drains_first_and_is_told_afterwards() {
    let mut host = crate::event::listening();
    host.acknowledge();
    let mut other = sibling(&mut host);
    other.acknowledge();
    host.effects();
    host.submit(format(1, 1));
    host.process();
    host.acknowledge();
    assert!(host.effects().iter().all(|effect| !matches!(effect, Effect::Request { .. })));
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    other.call(|controller, cx| controller.subsystem_changed(cx));
    assert_eq!(flags(&other), namespace_flags::FORMATTING);
    other.effects();
    other.acknowledge();
    assert!(other.effects().contains(&Effect::SubsystemChanged));
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    host.call(|controller, cx| controller.subsystem_changed(cx));
    let (ticket, _) = host.request();
    host.complete(ticket, Ok(()));
    assert!(host.effects().contains(&Effect::SubsystemChanged));
    host.acknowledge();
    assert!(host.completion().unwrap().status().is_success());
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    other.call(|controller, cx| controller.subsystem_changed(cx));
    assert_eq!(other.controller.segment().namespaces[0].block_shift.load(Ordering::Relaxed), 12);
    let told = other.run(crate::event::request());
    assert_eq!(told.dw0 >> 16, 4, "log page of the event");
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    let pending = host.controller.segment().admin.pending_events.load(Ordering::Relaxed);
    assert_eq!(pending, 0, "who formats knows");
}

#[test]
fn a_sibling_that_goes_does_not_hold_a_format_up() {
    let mut host = Host::enabled();
    host.acknowledge();
    let mut other = sibling(&mut host);
    other.acknowledge();
    host.submit(format(1, 1));
    host.process();
    host.acknowledge();
    host.effects();
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    other.call(|controller, cx| controller.subsystem_changed(cx));
    other.reset(ResetKind::Disconnect);
    other.acknowledge();
    std::mem::swap(&mut host.subsystem, &mut other.subsystem);
    host.call(|controller, cx| controller.subsystem_changed(cx));
    let (ticket, _) = host.request();
    host.complete(ticket, Ok(()));
}

#[test]
fn a_paused_namespaces_format_begins_later_and_a_pause_waits_for_one_under_way() {
    let mut host = Host::enabled();
    host.acknowledge();
    let still = |host: &Host| host.controller.is_namespace_still(Nsid(1), &host.workers);
    let pause = |host: &mut Host| {
        host.subsystem.pause_namespace(Nsid(1)).unwrap();
        host.call(|controller, cx| controller.subsystem_changed(cx));
        let number = host.controller.segment().namespaces[0].pause_number.load(Ordering::Relaxed);
        assert!(!still(host), "no worker has said so");
        for seat in &host.workers {
            seat.queues.paused[0].store(number, Ordering::Release);
        }
        number
    };
    let first = pause(&mut host);
    assert!(still(&host));
    host.workers[0].draining = true;
    assert!(!still(&host), "requests of a dead worker may be under way");
    host.workers[0].draining = false;
    host.submit(format(1, 1));
    host.process();
    host.acknowledge();
    assert!(host.effects().iter().all(|effect| !matches!(effect, Effect::Request { .. })));
    assert!(still(&host));
    host.subsystem.resume_namespace(Nsid(1));
    host.call(|controller, cx| controller.subsystem_changed(cx));
    assert!(!still(&host));
    let (ticket, _) = host.request();
    assert_ne!(pause(&mut host), first);
    assert!(!still(&host), "it is being formatted");
    host.complete(ticket, Ok(()));
    host.acknowledge();
    assert!(host.completion().unwrap().status().is_success() && still(&host));
}
