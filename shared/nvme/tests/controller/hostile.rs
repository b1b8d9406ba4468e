//! What a hostile guest does with its admin queue, registers and doorbells.

use crate::host::{DATA, ENTRIES, Host, MEMORY, admin};
use crate::identify::identify;
use nvme_spec::command::{AdminOpcode, Command, Fuse};
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::register::{DoorbellKind, doorbell_offset};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{Iova, QueueId, Status};
use proptest::prelude::*;
use std::sync::atomic::Ordering;

fn ring(host: &mut Host, offset: u64, value: u32) {
    host.call(|controller, cx| controller.doorbell_written(offset, &value.to_le_bytes(), cx));
}

#[test]
fn data_pointers_that_lead_nowhere_are_refused() {
    let mut host = Host::enabled();
    let cases = [
        ("unmapped", identify(1, 0).with_prps(Iova(MEMORY), Iova(0)), Status::DATA_TRANSFER_ERROR),
        (
            "end of memory",
            identify(1, 0).with_prps(Iova(MEMORY - 8), Iova(MEMORY)),
            Status::DATA_TRANSFER_ERROR,
        ),
        ("wraps", identify(1, 0).with_prps(Iova(!3), Iova(0)), Status::DATA_TRANSFER_ERROR),
        (
            "odd",
            identify(1, 0).with_prps(Iova(DATA + 1), Iova(DATA + 8192)),
            Status::PRP_OFFSET_INVALID,
        ),
        (
            "second with offset",
            identify(1, 0).with_prps(Iova(DATA + 8), Iova(DATA + 8200)),
            Status::PRP_OFFSET_INVALID,
        ),
        (
            "sgl",
            identify(1, 0).with_sgl(SglDescriptor::data_block(Iova(DATA), 4096)),
            Status::INVALID_FIELD,
        ),
        ("fused", identify(1, 0).with_fuse(Fuse::FIRST), Status::INVALID_FIELD),
    ];
    for (what, command, status) in cases {
        assert_eq!(host.status(command), status, "{what}");
    }
    assert!(host.csts().rdy() && !host.csts().cfs());
}

#[test]
fn a_structure_over_two_pages_is_whole() {
    let mut host = Host::enabled();
    let whole = host.fetch(identify(1, 0), 4096).unwrap();
    let split = identify(1, 0).with_prps(Iova(DATA + 0xF00), Iova(DATA + 0x5000));
    assert!(host.run(split).status().is_success());
    let mut parts = vec![0; 4096];
    host.memory.read(ipc::Iova(DATA + 0xF00), &mut parts[..0x100]).unwrap();
    host.memory.read(ipc::Iova(DATA + 0x5000), &mut parts[0x100..]).unwrap();
    assert_eq!(parts, whole);
}

#[test]
fn a_command_that_its_own_answer_overwrites_runs_as_it_was_fetched() {
    let mut host = Host::enabled();
    let cid = host.submit(identify(1, 0).with_prps(Iova(crate::host::ASQ), Iova(0)));
    host.process();
    assert_eq!(host.completion().unwrap().cid, cid);
}

#[test]
fn doorbells_out_of_state_do_nothing() {
    let mut host = Host::new();
    for index in 0..256 {
        ring(&mut host, 0x1000 + index * 4, 3);
    }
    assert!((0..256).all(|index| host.doorbells.load(index) == 0));
    assert_eq!(host.controller.segment().admin.pending_events.load(Ordering::Relaxed), 0);
    host.doorbells.store(0, 5);
    assert!(!host.process());
    host.enable();
    assert_eq!(host.doorbells.load(0), 0, "what was rung before is forgotten");
    assert!(!host.process());
}

#[test]
fn doorbells_by_message_are_checked() {
    let mut host = Host::enabled();
    host.run(crate::queue::create_cq(1));
    host.run(crate::queue::create_sq(1, 1));
    let tail = |qid| doorbell_offset(0, QueueId(qid), DoorbellKind::SubmissionTail);
    let head = |qid| doorbell_offset(0, QueueId(qid), DoorbellKind::CompletionHead);
    ring(&mut host, tail(1), 15);
    ring(&mut host, head(1), 3);
    assert_eq!((host.doorbells.load(2), host.doorbells.load(3)), (15, 3));
    host.effects();
    ring(&mut host, tail(1), 16);
    assert_eq!(host.doorbells.load(2), 15);
    assert!(!host.effects().contains(&nvme::Effect::KickWorkers));
    let value = host.run(crate::event::request());
    assert_eq!(value.dw0, AsyncEvent::INVALID_DOORBELL_VALUE.into_bits());
    host.fetch(crate::log_page::log(nvme_spec::log_page::LogPageId::ERROR_INFORMATION, 64), 64)
        .unwrap();
    for at in [tail(2), head(127), 0x1001, 0x1000 + 256 * 4, u64::MAX] {
        ring(&mut host, at, 1);
    }
    let register = host.run(crate::event::request());
    assert_eq!(register.dw0, AsyncEvent::INVALID_DOORBELL_REGISTER.into_bits());
    host.call(|controller, cx| controller.doorbell_written(tail(1), &[1, 2], cx));
    assert_eq!(host.doorbells.load(2), 15);
}

#[test]
fn doorbell_buffers_are_two_pages_of_memory() {
    let mut host = Host::enabled();
    let config = |shadow, events| {
        admin(AdminOpcode::DOORBELL_BUFFER_CONFIG).with_prps(Iova(shadow), Iova(events))
    };
    for (shadow, events) in [
        (DATA + 8, DATA),
        (DATA, DATA + 8),
        (MEMORY, DATA),
        (DATA, MEMORY),
        (DATA, DATA),
        (u64::MAX - 4095, DATA),
    ] {
        assert_eq!(
            host.status(config(shadow, events)),
            Status::INVALID_FIELD,
            "{shadow:#x} {events:#x}"
        );
    }
    host.run(crate::queue::create_cq(1));
    host.run(crate::queue::create_sq(1, 1));
    host.doorbells.store(2, 6);
    assert!(host.run(config(DATA, DATA + 4096)).status().is_success());
    let settings = &host.controller.segment().settings;
    assert_eq!(settings.shadow_enabled.load(Ordering::Relaxed), 1);
    assert_eq!(settings.shadow_event_indexes.load(Ordering::Relaxed), DATA + 4096);
    assert_eq!(host.data(12)[8..], [6, 0, 0, 0], "queues go on from where they are");
    host.write32(nvme_spec::register::offset::CC, 0);
    host.acknowledge();
    assert_eq!(host.controller.segment().settings.shadow_enabled.load(Ordering::Relaxed), 0);
}

#[test]
fn only_the_admin_set_leaves_no_queues_to_make() {
    let mut host = Host::new();
    host.enable_with(Host::cc().with_css(nvme_spec::register::CommandSetSelected::ADMIN_ONLY));
    assert!(host.csts().rdy());
    assert_eq!(host.status(crate::queue::create_cq(1)), Status::INVALID_OPCODE);
    assert!(host.run(identify(1, 0)).status().is_success());
}

/// Any command at all, with a bias towards opcodes that exist and memory that is there.
fn command() -> impl Strategy<Value = Command> {
    let opcode = prop_oneof![
        9 => prop::sample::select(vec![0_u8, 1, 2, 4, 5, 6, 8, 9, 0xA, 0xC, 0x7C, 0x80]),
        1 => any::<u8>(),
    ];
    let pointer = || {
        prop_oneof![
            4 => (0..MEMORY / 4096).prop_map(|page| page * 4096),
            1 => any::<u64>(),
        ]
    };
    let nsid = prop_oneof![0..4_u32, Just(u32::MAX), any::<u32>()];
    let small = || prop_oneof![0..0x200_u32, any::<u32>()];
    (opcode, nsid, pointer(), pointer(), small(), small(), [small(), small(), small(), small()])
        .prop_map(|(opcode, nsid, prp1, prp2, cdw10, cdw11, [cdw12, cdw13, cdw14, cdw15])| {
            Command {
                nsid: nvme_spec::Nsid(nsid),
                cdw10,
                cdw11,
                cdw12,
                cdw13,
                cdw14,
                cdw15,
                ..admin(AdminOpcode(opcode)).with_prps(Iova(prp1), Iova(prp2))
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_commands_and_doorbells_leave_a_controller_that_resets(
        acts in prop::collection::vec((command(), any::<u32>(), 0..4_u8), 1..60),
    ) {
        let mut host = Host::enabled();
        for (command, noise, act) in acts {
            host.submit(command);
            match act {
                0 => host.acknowledge(),
                1 => ring(&mut host, 0x1000 + u64::from(noise % 300) * 4, noise >> 16),
                2 => host.doorbells.store((noise % 3) as usize, noise >> 8),
                _ => {}
            }
            host.process();
            for effect in host.effects() {
                if let nvme::Effect::Request { ticket, .. } = effect {
                    host.complete(ticket, Ok(()));
                }
            }
            // A full queue or a bad head doorbell may leave entries of before; whatever comes has its own phase.
            let taken = std::iter::from_fn(|| host.completion()).take(ENTRIES as usize).count();
            prop_assert!(taken < ENTRIES as usize);
            host.doorbells.store(0, host.tail);
            host.doorbells.store(1, host.head);
        }
        host.reset(nvme::ResetKind::Function);
        host.acknowledge();
        prop_assert_eq!(host.csts().into_bits(), 0);
        host.enable();
        prop_assert!(host.run(identify(1, 0)).status().is_success());
    }
}
