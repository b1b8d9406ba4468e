//! Queue identifiers: kept from use while somebody may still ring their doorbells, and used again.

mod scripted;

use std::time::{Duration, Instant};

use nvme_driver::{BareQueue, Options, QueueOptions, ShadowDoorbells};
use nvme_spec::{Command, CommandId, Nsid, NvmOpcode, QueueId};
use scripted::{Script, Scripted, patient};

const OPTIONS: QueueOptions = QueueOptions { depth: 8, interrupt: false };

#[test]
fn a_reserved_queue_identifier_is_nobodys_until_it_is_released() {
    let target = Scripted::start(Script { queues: 2, ..Script::default() });
    let controller = target.connect();
    assert!(controller.keeping().is_none(), "of a vfio-user target nothing is kept");
    assert!(controller.reserve_queue(QueueId(1)));
    assert!(!controller.reserve_queue(QueueId(1)), "once");
    assert!(!controller.reserve_queue(QueueId(3)), "not granted");
    assert!(!controller.reserve_queue(QueueId(0)), "the admin queue");
    let second = controller.bare_queue(&OPTIONS).unwrap();
    assert_eq!(second.id(), QueueId(2));
    assert!(!controller.reserve_queue(QueueId(2)), "in use");
    controller.bare_queue(&OPTIONS).unwrap_err();
    controller.release_queue(QueueId(1));
    assert_eq!(controller.bare_queue(&OPTIONS).unwrap().id(), QueueId(1));
}

/// Flushes by these commands, one at a time.
fn flush(queue: &mut BareQueue, commands: std::ops::Range<u16>) {
    for cid in commands {
        let command = Command::nvm(NvmOpcode::FLUSH, CommandId(cid), Nsid(1));
        assert!(queue.push(command, &[]));
        queue.ring();
        let started = Instant::now();
        let completion = loop {
            if let Some(completion) = queue.pop() {
                break completion;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "no completion of {cid}");
            std::thread::sleep(Duration::from_micros(100));
        };
        assert_eq!(completion.cid, CommandId(cid), "and no other");
        queue.acknowledge();
    }
}

#[test]
fn a_bare_queue_begins_anew_whatever_the_last_of_its_identifier_left() {
    for (doorbell_buffer, mapped_doorbells) in [(false, true), (true, true), (true, false)] {
        let script = Script { queues: 1, doorbell_buffer, mapped_doorbells, ..Script::default() };
        let target = Scripted::start(script);
        let shadow_doorbells = ShadowDoorbells::Offered;
        let controller = target.connect_with(&Options { shadow_doorbells, ..patient() });
        for first in [2, 5, 0, 3] {
            let mut queue = controller.bare_queue(&OPTIONS).unwrap();
            flush(&mut queue, first..8);
        }
        let flushes = target.engine.lock().unwrap().count(NvmOpcode::FLUSH);
        assert_eq!(flushes, 6 + 3 + 8 + 5, "shadow doorbells: {doorbell_buffer}");
    }
}
