//! Submitting and completing allocate nothing: what goes as one command, what is split, what is sent again.

mod scripted;

use std::time::{Duration, Instant};

use nvme_driver::{Completed, DmaBuffer, Namespace, QueueOptions, QueuePair, Request};
use nvme_spec::{Lba, Nsid, Status};
use scripted::{Act, Script, Scripted};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the buffers: of one command each, and of five.
const LENGTHS: [usize; 2] = [4096, 80 << 10];

/// Writes and reads every buffer, all at the same time.
fn round(queue: &mut QueuePair, namespace: &Namespace, buffers: &mut Vec<DmaBuffer>) {
    let total = buffers.len();
    for write in [true, false] {
        while let Some(buffer) = buffers.pop() {
            let lba = Lba(buffers.len() as u64 * 8);
            let request = match write {
                true => Request::write(namespace, lba, buffer),
                false => Request::read(namespace, lba, buffer),
            };
            queue.submit(request).unwrap();
        }
        let started = Instant::now();
        while buffers.len() < total {
            assert!(started.elapsed() < PATIENCE, "requests do not end");
            queue.poll(usize::MAX, |_, Completed { buffer, result, .. }| {
                assert_eq!(result, Ok(0));
                buffers.extend(buffer);
            });
        }
    }
}

#[test]
fn submitting_and_completing_allocates_nothing() {
    let mut count = 0;
    let io = Box::new(move |_: &nvme_spec::Command| {
        count += 1;
        match count % 100 {
            // Sent again at once, and after a while.
            10 => Act::Status(Status::INTERNAL_ERROR),
            50 => Act::Status(Status::NAMESPACE_NOT_READY.with_crd(1)),
            _ => Act::Serve,
        }
    });
    let target = Scripted::start(Script { mdts: 2, crdt1: 1, io, ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions { depth: 128, interrupt: false }).unwrap();
    let of = |len| controller.allocate(12 * len).unwrap().into_chunks(len);
    let mut buffers: Vec<DmaBuffer> = LENGTHS.into_iter().flat_map(of).collect();
    // What is made once, is made now.
    round(&mut queue, &namespace, &mut buffers);
    let before = queue.counters();
    let found = allocation_counter::measure(|| {
        (0..10).for_each(|_| round(&mut queue, &namespace, &mut buffers));
    });
    let after = queue.counters();
    assert!(after.split > before.split && after.retried > before.retried, "{after:?}");
    assert_eq!(found.count_total, 0, "{found:?}");
    // It does count.
    assert!(allocation_counter::measure(|| drop(vec![before])).count_total > 0);
}
