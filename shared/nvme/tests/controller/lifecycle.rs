//! Enable, disable, shutdown and resets, with workers that take their time.

use crate::host::{ASQ, Host, admin};
use ipc::layout::controller::{ControllerState, QueueState};
use ipc::layout::queues::FailureReason;
use nvme::{Effect, Request, ResetKind};
use nvme_spec::Status;
use nvme_spec::command::AdminOpcode;
use nvme_spec::register::{
    ArbitrationSelected, Cap, Cc, CommandSetSelected, NSSR_RESET, ShutdownNotification,
    ShutdownStatus, offset,
};
use std::sync::atomic::Ordering;

fn state(host: &Host) -> u32 {
    host.controller.segment().signals.state.load(Ordering::Relaxed)
}

#[test]
fn enable_tells_the_workers_and_serves_commands() {
    let mut host = Host::enabled();
    assert_eq!(state(&host), ControllerState::Enabled as u32);
    assert!(host.effects().contains(&Effect::KickWorkers));
    let entry = host.run(crate::identify::identify(1, 0));
    assert!(entry.status().is_success());
    assert_eq!(entry.sqhd, 1);
    assert!(host.effects().contains(&Effect::Signal { vector: 0 }));
}

#[test]
fn every_page_size_of_cap_works() {
    for mps in 0..=4 {
        let mut host = Host::new();
        host.enable_with(Host::cc().with_mps(mps));
        assert!(host.csts().rdy(), "mps {mps}");
        let shift = host.controller.segment().settings.page_shift.load(Ordering::Relaxed);
        assert_eq!(shift, 12 + u32::from(mps));
    }
}

#[test]
fn an_invalid_enable_is_fatal_until_reset() {
    type Enable = fn(&mut Host);
    let bad: [(&str, Enable); 6] = [
        ("mps", |host| host.enable_with(Host::cc().with_mps(5))),
        ("ams", |host| {
            host.enable_with(Host::cc().with_ams(ArbitrationSelected::WEIGHTED_ROUND_ROBIN))
        }),
        ("css", |host| host.enable_with(Host::cc().with_css(CommandSetSelected(1)))),
        ("asq", |host| {
            host.write32(offset::AQA, 0x001F_001F);
            host.write64(offset::ASQ, 0x1000);
            host.write32(offset::CC, Host::cc().with_mps(4).into_bits());
        }),
        ("asqs", |host| {
            host.write32(offset::AQA, 0x001F_0000);
            host.write32(offset::CC, Host::cc().into_bits());
        }),
        ("acqs", |host| {
            host.write32(offset::AQA, 0x0000_001F);
            host.write32(offset::CC, Host::cc().into_bits());
        }),
    ];
    for (what, enable) in bad {
        let mut host = Host::new();
        enable(&mut host);
        assert!(host.csts().cfs() && !host.csts().rdy(), "{what}");
        assert!(!host.process());
        host.write32(offset::CC, 0);
        host.acknowledge();
        assert_eq!(host.csts().into_bits(), 0, "{what}");
        host.enable();
    }
}

#[test]
fn ready_goes_when_both_workers_have_drained() {
    let mut host = Host::enabled();
    assert!(host.run(crate::queue::create_cq(1)).status().is_success());
    let generation = host.controller.segment().signals.reset_generation.load(Ordering::Relaxed);
    host.write32(offset::CC, 0);
    let segment = host.controller.segment();
    assert_eq!(segment.signals.reset_generation.load(Ordering::Relaxed), generation + 1);
    assert_eq!(segment.completion_queues[1].state.load(Ordering::Relaxed), QueueState::Free as u32);
    assert_eq!(state(&host), ControllerState::Disabled as u32);
    assert!(host.csts().rdy() && host.controller.is_draining());
    host.acknowledge_one(0);
    assert!(host.csts().rdy());
    host.acknowledge_one(1);
    assert!(!host.csts().rdy() && !host.controller.is_draining());
    assert_eq!(host.read64(offset::ASQ), ASQ);
    host.enable();
    assert!(host.run(crate::identify::identify(1, 0)).status().is_success());
}

#[test]
fn a_dead_worker_does_not_hold_a_reset_up() {
    let mut host = Host::enabled();
    host.write32(offset::CC, 0);
    host.acknowledge_one(0);
    assert!(host.csts().rdy());
    host.workers[1].attached = false;
    host.call(|controller, cx| controller.poll(cx));
    assert!(!host.csts().rdy());
}

#[test]
fn enable_during_a_reset_waits_for_its_end() {
    let mut host = Host::enabled();
    host.write32(offset::CC, 0);
    host.write32(offset::CC, Host::cc().into_bits());
    assert_eq!(state(&host), ControllerState::Disabled as u32);
    host.acknowledge();
    assert!(host.csts().rdy());
    assert_eq!(state(&host), ControllerState::Enabled as u32);
}

#[test]
fn doorbells_are_zero_after_a_reset() {
    let mut host = Host::enabled();
    host.doorbells.store(0, 5);
    host.doorbells.store(9, 77);
    host.write32(offset::CC, 0);
    host.acknowledge();
    assert!((0..256).all(|index| host.doorbells.load(index) == 0));
}

#[test]
fn a_normal_shutdown_drains_then_flushes() {
    let mut host = Host::enabled();
    host.effects();
    host.write32(offset::CC, Host::cc().with_shn(ShutdownNotification::NORMAL).into_bits());
    assert_eq!(host.csts().shst(), ShutdownStatus::OCCURRING);
    assert_eq!(state(&host), ControllerState::Stopped as u32);
    assert!(!host.effects().iter().any(|effect| matches!(effect, Effect::Request { .. })));
    host.acknowledge();
    let (ticket, request) = host.request();
    assert_eq!(request, Request::Flush);
    assert_eq!(host.csts().shst(), ShutdownStatus::OCCURRING);
    host.complete(ticket, Ok(()));
    assert_eq!(host.csts().shst(), ShutdownStatus::COMPLETE);
    host.submit(crate::identify::identify(1, 0));
    assert!(!host.process());
    assert!(host.completion().is_none());
    host.write32(offset::CC, 0);
    host.acknowledge();
    assert_eq!(host.csts().into_bits(), 0);
}

#[test]
fn an_abrupt_shutdown_does_not_flush() {
    let mut host = Host::enabled();
    host.write32(offset::CC, Host::cc().with_shn(ShutdownNotification::ABRUPT).into_bits());
    host.effects();
    host.acknowledge();
    assert_eq!(host.csts().shst(), ShutdownStatus::COMPLETE);
    assert!(!host.effects().iter().any(|effect| matches!(effect, Effect::Request { .. })));
}

#[test]
fn a_disabled_controller_can_be_shut_down_and_enabled() {
    let mut host = Host::new();
    host.write32(offset::CC, Cc::new().with_shn(ShutdownNotification::NORMAL).into_bits());
    host.acknowledge();
    assert_eq!(host.csts().shst(), ShutdownStatus::COMPLETE);
    host.enable();
    assert_eq!(host.csts().shst(), ShutdownStatus::NORMAL_OPERATION);
}

#[test]
fn a_function_reset_clears_all_registers_and_waits_for_the_workers() {
    let mut host = Host::enabled();
    host.submit(admin(AdminOpcode::ASYNC_EVENT_REQUEST));
    host.process();
    host.reset(ResetKind::Function);
    assert!(host.controller.is_draining());
    assert_eq!(
        (host.read32(offset::CC), host.read32(offset::AQA), host.read64(offset::ASQ)),
        (0, 0, 0)
    );
    host.acknowledge();
    assert!(!host.controller.is_draining());
    let requests = &host.controller.segment().admin.event_requests;
    assert!(requests.iter().all(|request| request.load(Ordering::Relaxed) == 0));
    host.enable();
}

#[test]
fn a_subsystem_reset_is_asked_for_and_remembered() {
    let mut host = Host::enabled();
    host.write32(offset::NSSR, 1);
    assert!(!host.effects().contains(&Effect::SubsystemReset));
    host.write32(offset::NSSR, NSSR_RESET);
    assert!(host.effects().contains(&Effect::SubsystemReset));
    host.reset(ResetKind::Subsystem);
    host.acknowledge();
    assert!(host.csts().nssro() && !host.csts().rdy());
    assert_eq!(host.read32(offset::NSSR), 0);
    host.enable();
    host.write32(offset::CSTS, 0);
    assert!(host.csts().nssro());
    host.write32(offset::CSTS, 1 << 4);
    assert!(!host.csts().nssro());
}

#[test]
fn a_subsystem_reset_is_not_on_offer_where_it_would_reset_another_guest_s_controller() {
    let mut host = Host::enabled();
    let offered = |host: &Host| Cap::from_bits(host.read64(offset::CAP)).nssrs();
    assert!(offered(&host));
    let other = host.subsystem.add_controller().unwrap();
    host.write32(offset::NSSR, NSSR_RESET);
    assert!(!host.effects().contains(&Effect::SubsystemReset), "it was on offer when last read");
    assert!(!offered(&host));
    host.subsystem.remove_controller(other);
    host.write32(offset::NSSR, NSSR_RESET);
    assert!(host.effects().contains(&Effect::SubsystemReset));
    assert!(offered(&host));
}

#[test]
fn without_bus_mastering_nothing_is_fetched_or_posted() {
    let mut host = Host::enabled();
    host.acknowledge();
    // One command is under way, its completion queue being made, when DMA is switched off.
    let made = host.submit(crate::queue::create_cq(1));
    host.process();
    let version = host.call(|controller, cx| controller.set_bus_master(false, cx));
    assert!(host.workers.iter().all(|seat| !seat.has_acknowledged(version)), "they have to know");
    let signals = &host.controller.segment().signals;
    assert_eq!(signals.state.load(Ordering::Relaxed), ControllerState::Stopped as u32);
    host.acknowledge();
    assert!(host.workers.iter().all(|seat| seat.has_acknowledged(version)));
    let waiting = host.submit(crate::identify::identify(1, 0));
    assert!(!host.process());
    assert!(host.completion().is_none() && host.csts().rdy());
    assert_eq!(host.controller.segment().admin.fetched.load(Ordering::Relaxed), 1);
    assert!(!host.effects().iter().any(|effect| matches!(effect, Effect::Signal { .. })));
    // Enabled anew without it, it waits all the same.
    host.call(|controller, cx| controller.set_bus_master(true, cx));
    assert_eq!(host.completion().unwrap().cid, made);
    host.process();
    assert_eq!(host.completion().unwrap().cid, waiting);
    let signals = &host.controller.segment().signals;
    assert_eq!(signals.state.load(Ordering::Relaxed), ControllerState::Enabled as u32);
    host.call(|controller, cx| controller.set_bus_master(false, cx));
    host.write32(offset::CC, 0);
    host.acknowledge();
    host.enable();
    host.submit(crate::identify::identify(1, 0));
    host.process();
    assert!(host.completion().is_none());
}

/// A worker is dead, and its backend still works for it.
#[test]
fn a_reset_is_complete_when_block_devices_are_done_with_a_dead_worker() {
    let mut host = Host::enabled();
    host.acknowledge();
    (host.workers[0].attached, host.workers[0].draining) = (false, true);
    host.call(|controller, cx| controller.fail(cx));
    host.write32(offset::CC, 0);
    host.acknowledge();
    assert!(host.csts().rdy() && host.controller.is_draining());
    assert!(!host.workers[0].has_unmapped(0));
    host.workers[0].draining = false;
    host.call(|controller, cx| controller.poll(cx));
    assert!(!host.csts().rdy() && !host.controller.is_draining());
    assert!(host.workers[0].has_unmapped(1));
}

#[test]
fn a_failed_worker_is_fatal_until_the_reset() {
    let mut host = Host::enabled();
    let failure = &host.workers[0].queues.acknowledged.failure;
    failure.store(FailureReason::MemoryFault as u32, Ordering::Release);
    host.call(|controller, cx| controller.poll(cx));
    assert!(host.csts().cfs() && host.csts().rdy());
    host.submit(crate::identify::identify(1, 0));
    assert!(!host.process());
    host.workers[0].queues.acknowledged.failure.store(0, Ordering::Release);
    host.write32(offset::CC, 0);
    host.acknowledge();
    assert_eq!(host.csts().into_bits(), 0);
    host.enable();
}

#[test]
fn commands_that_wait_for_workers_end_with_a_reset() {
    let mut host = Host::enabled();
    host.acknowledge();
    host.submit(crate::queue::create_cq(1));
    host.process();
    assert!(host.completion().is_none() && host.controller.is_waiting());
    host.write32(offset::CC, 0);
    host.acknowledge();
    host.enable();
    host.acknowledge();
    assert!(host.completion().is_none() && !host.controller.is_waiting());
}

#[test]
fn a_lost_admin_queue_is_fatal() {
    let mut host = Host::enabled();
    host.submit(crate::identify::identify(1, 0));
    host.dma.unmap_all();
    host.process();
    assert!(host.csts().cfs());
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    let mut host = Host::new();
    host.write32(offset::AQA, 3 << 16 | 31);
    host.write64(offset::ASQ, ASQ);
    host.write64(offset::ACQ, crate::host::ACQ);
    host.write32(offset::CC, Host::cc().into_bits());
    let cids: Vec<_> = (0..20).map(|_| host.submit(admin(AdminOpcode(0xC0)))).collect();
    let mut seen = Vec::new();
    let mut head = 0_u32;
    let mut phase = true;
    for _ in 0..100 {
        host.process();
        let mut bytes = [0; 16];
        let at = crate::host::ACQ + u64::from(head % 4) * 16;
        host.memory.read(ipc::Iova(at), &mut bytes).unwrap();
        let entry: nvme_spec::Completion = zerocopy::FromBytes::read_from_bytes(&bytes).unwrap();
        if entry.phase() == phase {
            assert_eq!(entry.status().code(), Status::INVALID_OPCODE);
            seen.push(entry.cid);
            head += 1;
            phase = (head / 4).is_multiple_of(2);
            host.doorbells.store(1, head % 4);
        }
    }
    assert_eq!(seen, cids);
}
