//! Reading and writing through the driver, against a controller that behaves.

mod scripted;

use std::time::Duration;

use nvme_driver::{DataPointer, IoError, Options, QueueOptions, Reason, Request, ShadowDoorbells};
use nvme_spec::{Lba, Nsid, NvmOpcode, Status};
use scripted::{Script, Scripted, patient};

/// Bytes that differ from block to block and within a block.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len).map(|at| (at as u64 / 512 * 31 + at as u64 * 7 + seed * 13) as u8).collect()
}

fn round_trips(script: Script, options: &Options) {
    let target = Scripted::start(script);
    let controller = target.connect_with(options);
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    for (blocks, lba, offset) in [
        (1, 0, 0),
        (8, 3, 0),
        (9, 100, 512),
        (16, 7, 4),
        (17, 5, 0),
        (64, 1, 2048),
        (200, 33, 0),
        (1023, 13, 508),
    ] {
        let len = blocks * 512;
        let data = pattern(len, lba);
        let mut buffer = controller.allocate(len + offset).unwrap();
        if offset > 0 {
            buffer = buffer.split_off(offset).unwrap();
        }
        buffer.copy_from(&data);
        let done = queue.run(Request::write(&namespace, Lba(lba), buffer).with_token(lba)).unwrap();
        assert_eq!((done.token, done.result), (lba, Ok(0)), "write of {blocks} blocks");
        let start = lba as usize * 512;
        assert!(target.engine.lock().unwrap().media[start..start + len] == data, "{blocks} blocks");

        let buffer = done.buffer.unwrap();
        buffer.host().fill(0xEE);
        let done = queue.run(Request::read(&namespace, Lba(lba), buffer)).unwrap();
        assert_eq!(done.result, Ok(0));
        assert!(done.buffer.unwrap().to_vec() == data, "read of {blocks} blocks");
    }
}

#[test]
fn data_comes_back_over_mapped_doorbells_and_prps() {
    round_trips(Script::default(), &patient());
}

#[test]
fn data_comes_back_over_doorbell_messages() {
    round_trips(Script { mapped_doorbells: false, ..Script::default() }, &patient());
}

#[test]
fn data_comes_back_over_shadow_doorbells() {
    let script = Script { doorbell_buffer: true, ..Script::default() };
    let options = Options { shadow_doorbells: ShadowDoorbells::Offered, ..patient() };
    round_trips(script, &options);
}

#[test]
fn data_comes_back_with_sgls() {
    for data_pointer in [DataPointer::Auto, DataPointer::Sgl, DataPointer::Prp] {
        let options = Options { data_pointer, ..patient() };
        round_trips(Script { sgl: true, ..Script::default() }, &options);
    }
}

#[test]
fn data_comes_back_where_the_controller_takes_little_at_a_time() {
    // One page a command, and a boundary that is no power of two.
    let script = Script { mdts: 0, noiob: 6, mqes_z: 3, queues: 1, ..Script::default() };
    round_trips(script, &patient());
}

#[test]
fn every_length_comes_back_from_one_block_to_beyond_the_largest_transfer() {
    // 16 KiB a command: 32 blocks; up to three commands and a rest.
    let script = Script { mdts: 2, sgl: true, blocks: 8192, ..Script::default() };
    let target = Scripted::start(script);
    for data_pointer in [DataPointer::Prp, DataPointer::Sgl, DataPointer::Auto] {
        let controller = target.connect_with(&Options { data_pointer, ..patient() });
        let namespace = controller.namespace(Nsid(1)).unwrap();
        let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
        let memory = controller.allocate(128 * 512).unwrap();
        for blocks in 1..=100 {
            let (lba, len) = (blocks as u64 * 61, blocks * 512);
            let data = pattern(len, lba);
            // Somewhere in a page, on a dword.
            let mut buffer = memory.memory().buffer(blocks * 4, len).unwrap();
            buffer.copy_from(&data);
            let done = queue.run(Request::write(&namespace, Lba(lba), buffer)).unwrap();
            assert_eq!(done.result, Ok(0), "write of {blocks} blocks");
            let buffer = done.buffer.unwrap();
            buffer.host().fill(0);
            let done = queue.run(Request::read(&namespace, Lba(lba), buffer)).unwrap();
            assert_eq!(done.result, Ok(0), "read of {blocks} blocks");
            assert!(done.buffer.unwrap().to_vec() == data, "{blocks} blocks, {data_pointer:?}");
        }
        drop((queue, controller));
    }
}

#[test]
fn transfers_are_split_at_mdts_and_at_the_boundary() {
    let target = Scripted::start(Script { mdts: 1, noiob: 32, ..Script::default() });
    let controller = target.connect();
    assert_eq!(controller.max_transfer(), 8192);
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(64 * 512).unwrap();
    let done = queue.run(Request::read(&namespace, Lba(24), buffer)).unwrap();
    assert_eq!(done.result, Ok(0));
    assert_eq!(queue.counters().split, 1);
    let engine = target.engine.lock().unwrap();
    let pieces: Vec<_> = engine
        .seen
        .iter()
        .filter(|(sqid, _)| *sqid != 0)
        .map(|(_, command)| (command.slba().0, (command.cdw12 & 0xFFFF) + 1))
        .collect();
    assert_eq!(pieces, [(24, 8), (32, 16), (48, 16), (64, 16), (80, 8)]);
}

#[test]
fn a_full_queue_refuses_and_gives_the_request_back() {
    let target = Scripted::start(Script { mqes_z: 4, ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions { depth: 100, interrupt: false }).unwrap();
    assert_eq!(queue.depth(), 4, "what the controller grants");
    let mut buffers = controller.allocate(5 * 512).unwrap().into_chunks(512);
    let last = buffers.pop().unwrap();
    for buffer in buffers {
        queue.submit(Request::read(&namespace, Lba(0), buffer)).unwrap();
    }
    let rejected = queue.submit(Request::read(&namespace, Lba(9), last)).unwrap_err();
    assert_eq!(rejected.reason, Reason::Full);
    assert!(rejected.request.into_buffer().is_some());
    let mut taken = 0;
    while queue.is_busy() {
        taken += queue.poll(16, |_, done| assert_eq!(done.result, Ok(0)));
    }
    assert_eq!(taken, 4);
}

#[test]
fn one_doorbell_tells_of_a_whole_burst() {
    let target = Scripted::start(Script::default());
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    for buffer in controller.allocate(64 * 4096).unwrap().into_chunks(4096) {
        queue.submit(Request::read(&namespace, Lba(0), buffer)).unwrap();
    }
    assert_eq!((queue.in_flight(), queue.counters().rings), (64, 0));
    let mut left = 64;
    while left > 0 {
        left -= queue.poll(64, |_, done| assert_eq!(done.result, Ok(0)));
    }
    assert_eq!(queue.counters().rings, 1);
}

#[test]
fn queues_are_kept_busy_over_many_turns_of_their_rings() {
    for (mqes_z, depth) in [(1, 1), (2, 2), (15, 8), (1023, 128)] {
        let target = Scripted::start(Script { mqes_z, ..Script::default() });
        let controller = target.connect();
        let namespace = controller.namespace(Nsid(1)).unwrap();
        let mut queue = controller.queue_pair(&QueueOptions { depth, interrupt: false }).unwrap();
        for buffer in controller.allocate(usize::from(depth) * 512).unwrap().into_chunks(512) {
            queue.submit(Request::read(&namespace, Lba(1), buffer)).unwrap();
        }
        let mut left = 3000;
        while queue.is_busy() {
            queue.poll(7, |queue, done| {
                assert_eq!(done.result, Ok(0));
                if left > 0 {
                    left -= 1;
                    let buffer = done.buffer.unwrap();
                    queue.submit(Request::read(&namespace, Lba(left), buffer)).unwrap();
                }
            });
        }
        assert_eq!(target.engine.lock().unwrap().count(NvmOpcode::READ), 3000 + usize::from(depth));
    }
}

#[test]
fn what_cannot_be_asked_is_refused_with_the_reason() {
    let target = Scripted::start(Script { write_protected: true, ..Script::default() });
    let other = Scripted::start(Script::default());
    let (controller, stranger) = (target.connect(), other.connect());
    let namespace = controller.namespace(Nsid(1)).unwrap();
    assert!(!namespace.is_writable());
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = || controller.allocate(4096).unwrap();
    let mut refuse = |request| queue.submit(request).unwrap_err().reason;
    assert_eq!(refuse(Request::write(&namespace, Lba(0), buffer())), Reason::WriteProtected);
    assert_eq!(
        refuse(Request::read(&namespace, Lba(0), stranger.allocate(4096).unwrap())),
        Reason::ForeignBuffer
    );
    let mut odd = buffer();
    let odd_end = odd.split_off(2 * 512 + 1);
    assert_eq!(refuse(Request::read(&namespace, Lba(0), odd)), Reason::Length);
    let mut short = odd_end.unwrap();
    drop(short.split_off(512));
    assert_eq!(refuse(Request::read(&namespace, Lba(0), short)), Reason::Alignment);
    assert_eq!(refuse(Request::read(&namespace, Lba(u64::MAX), buffer())), Reason::Range);
    assert_eq!(target.engine.lock().unwrap().count(NvmOpcode::READ), 0);
}

#[test]
fn a_namespace_that_is_not_there_is_named_with_those_there_are() {
    let target = Scripted::start(Script::default());
    let error = target.connect().namespace(Nsid(7)).unwrap_err().to_string();
    assert!(error.contains("namespace 7 ") && error.contains("active: 1"), "{error}");
}

#[test]
fn status_of_the_controller_reaches_the_caller() {
    let target = Scripted::start(Script::default());
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let done = queue.run(Request::read(&namespace, Lba(4095), buffer)).unwrap();
    assert_eq!(done.result, Err(IoError::Status(Status::LBA_OUT_OF_RANGE.with_dnr())));
    assert!(done.buffer.is_some(), "the buffer comes back all the same");
}

#[test]
fn interrupts_wake_whoever_waits() {
    let target = Scripted::start(Script {
        io: Box::new(|_| scripted::Act::Late(Duration::from_millis(5))),
        ..Script::default()
    });
    let controller = target.connect_with(&Options { interrupts: true, ..patient() });
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions { depth: 8, interrupt: true }).unwrap();
    assert!(queue.event().is_some());
    for lba in 0..20 {
        let buffer = controller.allocate(4096).unwrap();
        let done = queue.run(Request::read(&namespace, Lba(lba), buffer)).unwrap();
        assert_eq!(done.result, Ok(0));
    }
}

#[test]
fn queues_that_are_dropped_can_be_had_again() {
    for doorbell_buffer in [false, true] {
        let script = Script { queues: 2, doorbell_buffer, ..Script::default() };
        let target = Scripted::start(script);
        let shadow_doorbells = ShadowDoorbells::Offered;
        let controller = target.connect_with(&Options { shadow_doorbells, ..patient() });
        let namespace = controller.namespace(Nsid(1)).unwrap();
        for _ in 0..5 {
            let mut first = controller.queue_pair(&QueueOptions::default()).unwrap();
            let second = controller.queue_pair(&QueueOptions::default()).unwrap();
            let error = controller.queue_pair(&QueueOptions::default()).unwrap_err();
            assert!(error.to_string().contains("all 2"), "{error}");
            // The next queue of this identifier starts anew, whatever the doorbells of this one say in the end.
            for lba in 0..3 {
                let buffer = controller.allocate(512).unwrap();
                let done = first.run(Request::read(&namespace, Lba(lba), buffer)).unwrap();
                assert_eq!(done.result, Ok(0));
            }
            drop((first, second));
        }
        assert_eq!(target.engine.lock().unwrap().count(NvmOpcode::READ), 15);
    }
}
