//! Controllers that take their time to come up and to shut down, and formats other than the usual one.

mod scripted;

use std::time::Duration;

use nvme_driver::{Error, QueueOptions, Request};
use nvme_spec::identify::namespace::LbaFormat;
use nvme_spec::{Lba, Nsid};
use scripted::{Script, Scripted};

#[test]
fn a_controller_has_the_time_to_become_ready_that_it_asks_for() {
    // By CAP.TO it would be late; CRTO says how long it may take.
    let ready_after = Duration::from_millis(1500);
    let target = Scripted::start(Script { to: 1, crwmt: 60, ready_after, ..Script::default() });
    let controller = target.connect();
    assert!(controller.status().unwrap().rdy());
    controller.reset().unwrap();
    assert_eq!(target.engine.lock().unwrap().enables, 2);
}

#[test]
fn a_controller_that_is_coming_up_is_disabled_when_it_has() {
    let ready_after = Duration::from_millis(300);
    let target = Scripted::start(Script { coming_up: true, ready_after, ..Script::default() });
    let controller = target.connect();
    assert!(controller.status().unwrap().rdy());
    let engine = target.engine.lock().unwrap();
    assert_eq!((engine.enables, engine.hasty_disables), (1, 0));
}

#[test]
fn a_shutdown_has_the_time_that_the_controller_asks_for() {
    // Longer than one is waited for that does not say how long it takes.
    let shut_after = Duration::from_millis(2500);
    let target = Scripted::start(Script { rtd3e: 60_000_000, shut_after, ..Script::default() });
    let controller = target.connect();
    controller.shutdown().unwrap();
    assert_eq!(target.engine.lock().unwrap().shutdowns, 1);
}

#[test]
fn the_last_that_goes_shuts_the_controller_down() {
    let target = Scripted::start(Script::default());
    let controller = target.connect();
    let queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    drop(controller);
    assert_eq!(target.engine.lock().unwrap().shutdowns, 0);
    drop(queue);
    assert_eq!(target.engine.lock().unwrap().shutdowns, 1);
}

#[test]
fn memory_pages_are_as_large_as_the_controller_has_them() {
    for mps in [0, 1, 4] {
        let target = Scripted::start(Script { mps, mdts: 1, ..Script::default() });
        let controller = target.connect();
        let page = 4096 << mps;
        assert_eq!(controller.max_transfer(), 2 * page as u64);
        let namespace = controller.namespace(Nsid(1)).unwrap();
        for _ in 0..2 {
            // What takes less than a page moves those behind it by a whole one.
            let small = controller.allocate(4096).unwrap();
            let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
            for (len, offset) in [(512, 0), (page, 0), (page, 512), (2 * page, 4), (5 * page, 0)] {
                let buffer = controller.allocate(offset + len).unwrap();
                assert_eq!(buffer.iova().0 % page as u64, 0);
                let mut buffer = buffer.memory().buffer(offset, len).unwrap();
                let data: Vec<u8> = (0..len).map(|at| (at / 512 + at * 7 + offset) as u8).collect();
                buffer.copy_from(&data);
                let done = queue.run(Request::write(&namespace, Lba(9), buffer)).unwrap();
                assert_eq!(done.result, Ok(0), "{len} bytes at {offset}, pages of {page}");
                let written = target.engine.lock().unwrap().media[9 * 512..9 * 512 + len].to_vec();
                assert!(written == data, "{len} bytes at {offset}, pages of {page}");
            }
            drop(small);
        }
    }
}

#[test]
fn blocks_of_every_size_that_is_driven_come_back() {
    for lbads in [9, 12, 16] {
        let format = LbaFormat::new().with_lbads(lbads);
        let target = Scripted::start(Script { format, blocks: 128, ..Script::default() });
        let controller = target.connect();
        let namespace = controller.namespace(Nsid(1)).unwrap();
        assert_eq!((namespace.block_size(), namespace.blocks().0), (1 << lbads, 128));
        let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
        for blocks in [1, 2, 3, 7, 20] {
            let lba = 3 * blocks as u64 - 2;
            let len = blocks << lbads;
            let data: Vec<u8> = (0..len).map(|at| (at / 13 + at * 7 + blocks) as u8).collect();
            let mut buffer = controller.allocate(len).unwrap();
            buffer.copy_from(&data);
            let done = queue.run(Request::write(&namespace, Lba(lba), buffer)).unwrap();
            assert_eq!(done.result, Ok(0), "write of {blocks} blocks of {}", 1 << lbads);
            let start = (lba as usize) << lbads;
            assert!(target.engine.lock().unwrap().media[start..start + len] == data);
            let buffer = done.buffer.unwrap();
            buffer.host().fill(0xEE);
            let done = queue.run(Request::read(&namespace, Lba(lba), buffer)).unwrap();
            assert_eq!(done.result, Ok(0), "read of {blocks} blocks of {}", 1 << lbads);
            assert!(done.buffer.unwrap().to_vec() == data, "{blocks} blocks of {}", 1 << lbads);
        }
    }
}

#[test]
fn a_format_that_is_not_driven_is_named_with_what_would_be() {
    let format = LbaFormat::new().with_lbads(9);
    for (format, wanted) in [
        (format.with_ms(8), "8 bytes of metadata a block is not supported, only formats without"),
        (format.with_lbads(8), "LBADS 8 is not supported, only blocks of 512 bytes to 64 KiB"),
        (format.with_lbads(17), "LBADS 17 is not supported, only blocks of 512 bytes to 64 KiB"),
    ] {
        let target = Scripted::start(Script { format, blocks: 8, ..Script::default() });
        let error = target.connect().namespace(Nsid(1)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("namespace 1 with ") && text.contains(wanted), "{text}");
    }
}
