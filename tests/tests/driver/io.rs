//! Every I/O command, every kind of data pointer, every length.

use nvme_driver::{DataPointer, IoError, Options, QueueOptions, Request};
use nvme_spec::nvm::{CopyRange, DatasetRange};
use nvme_spec::{BlockCount, Command, CommandId, Lba, Nsid, NvmOpcode, Status};

use crate::{
    ENDPOINTS, MEMORY, SIZE, connect, connect_with, options, pattern, round_trip, run, start,
    status,
};

#[test]
fn every_length_comes_back_from_one_block_to_beyond_the_largest_transfer() {
    let target = start();
    for endpoint in ENDPOINTS {
        for data_pointer in [DataPointer::Prp, DataPointer::Sgl, DataPointer::Auto] {
            let controller =
                connect_with(&target, endpoint, &Options { data_pointer, ..options() });
            assert_eq!(controller.max_transfer(), 1 << 20, "what is configured");
            let namespace = controller.namespace(MEMORY).expect("there");
            let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
            let memory = controller.allocate(4 << 20).expect("memory");
            // All small ones, then some around each power of two up to three transfers and a rest.
            let around = |blocks: usize| [blocks - 1, blocks, blocks + 1];
            let large = [256, 512, 1024, 2048, 4096, 6144].into_iter().flat_map(around);
            for blocks in (1..=130).chain(large) {
                let (len, lba) = (blocks * 512, blocks as u64 * 7);
                let data = pattern(len, lba);
                let offset = blocks % 129 * 4;
                let mut buffer = memory.memory().buffer(offset, len).expect("within");
                buffer.copy_from(&data);
                let done = run(&mut queue, Request::write(&namespace, Lba(lba), buffer));
                assert_eq!(done.result, Ok(0), "write of {blocks} blocks");
                let buffer = done.buffer.expect("back");
                buffer.host().fill(0xEE);
                let done = run(&mut queue, Request::read(&namespace, Lba(lba), buffer));
                assert_eq!(done.result, Ok(0), "read of {blocks} blocks");
                assert!(done.buffer.expect("back").to_vec() == data, "{blocks}, {data_pointer:?}");
            }
            assert!(queue.counters().split > 0);
        }
    }
    assert!(target.stop().success());
}

#[test]
fn compare_tells_what_differs_and_a_fused_write_takes_place_only_if_nothing_does() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let filled = |byte| {
            let mut buffer = controller.allocate(1024).expect("memory");
            buffer.copy_from(&[byte; 1024]);
            buffer
        };
        let at = Lba(1000);
        assert_eq!(status(&mut queue, Request::write(&namespace, at, filled(1))), Status::SUCCESS);
        assert_eq!(
            status(&mut queue, Request::compare(&namespace, at, filled(1))),
            Status::SUCCESS
        );
        let failed = Status::COMPARE_FAILURE;
        assert_eq!(status(&mut queue, Request::compare(&namespace, at, filled(2))), failed);

        for (expected, wanted) in
            [(1, [Ok(0), Ok(0)]), (1, [failed, Status::ABORTED_FAILED_FUSED].map(Err))]
        {
            let pair = queue.submit_fused(
                Request::compare(&namespace, at, filled(expected)).with_token(1),
                Request::write(&namespace, at, filled(9)).with_token(2),
            );
            assert!(pair.is_ok());
            for (token, wanted) in (1..).zip(wanted) {
                let done = queue.wait_next().expect("outstanding");
                let result = done.result.map_err(|error| match error {
                    IoError::Status(status) => status.code(),
                    error => panic!("{error}"),
                });
                assert_eq!((done.token, result), (token, wanted));
            }
            let stored = run(&mut queue, Request::read(&namespace, at, filled(0)));
            assert_eq!(stored.buffer.expect("back").to_vec(), [9; 1024]);
        }
    }
    assert!(target.stop().success());
}

#[test]
fn zeroes_deallocation_verify_copy_and_flush() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let blocks = 64;
        let len = blocks as usize * 512;
        let mut model = pattern(len, 5);
        let mut buffer = controller.allocate(len).expect("memory");
        buffer.copy_from(&model);
        let write = Request::write(&namespace, Lba(0), buffer).with_fua();
        let mut buffer = run(&mut queue, write).buffer.expect("back");

        let mut clear = |from: usize, count: usize| model[from * 512..(from + count) * 512].fill(0);
        for (lba, count, deallocate) in [(3, 5, false), (20, 4, true)] {
            let zeroes = Request::write_zeroes(&namespace, Lba(lba), BlockCount(count), deallocate);
            assert_eq!(status(&mut queue, zeroes), Status::SUCCESS);
            clear(lba as usize, count as usize);
        }
        let range = |slba, length| DatasetRange { slba: Lba(slba), length, ..Default::default() };
        let list = controller.allocate(4096).expect("memory");
        let deallocate =
            Request::deallocate(&namespace, &[range(30, 2), range(0, 0), range(40, 8)], list);
        assert_eq!(status(&mut queue, deallocate), Status::SUCCESS);
        clear(30, 2);
        clear(40, 8);

        let source = |slba, blocks: u16| CopyRange {
            slba: Lba(slba),
            nlb_z: blocks - 1,
            ..Default::default()
        };
        let copy = |to| {
            let list = controller.allocate(4096).expect("memory");
            Request::copy(&namespace, &[source(50, 3), source(1, 1)], Lba(to), list)
        };
        assert_eq!(status(&mut queue, copy(10)), Status::SUCCESS);
        model.copy_within(50 * 512..53 * 512, 10 * 512);
        model.copy_within(512..1024, 13 * 512);
        assert_eq!(status(&mut queue, copy(51)), Status::INVALID_FIELD, "it overlaps its source");

        buffer.copy_from(&vec![0xEE; len]);
        let done = run(&mut queue, Request::read(&namespace, Lba(0), buffer));
        assert!(done.buffer.expect("back").to_vec() == model, "over {endpoint} doorbells");
        let verify = |lba| Request::verify(&namespace, Lba(lba), BlockCount(8));
        assert_eq!(status(&mut queue, verify(0)), Status::SUCCESS);
        assert_eq!(status(&mut queue, verify(SIZE / 512 - 4)), Status::LBA_OUT_OF_RANGE);
        assert_eq!(status(&mut queue, Request::flush(&namespace)), Status::SUCCESS);
        let mut everywhere = Command::nvm(NvmOpcode::FLUSH, CommandId(0), Nsid::BROADCAST);
        everywhere.nsid = Nsid::BROADCAST;
        queue.submit_command(everywhere, None, 4).expect("room");
        let done = queue.wait_next().expect("outstanding");
        assert_eq!((done.token, done.result), (4, Ok(0)));
    }
    assert!(target.stop().success());
}

#[test]
fn commands_that_are_wrong_end_with_the_status_that_says_why() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let read = |nsid| Command::nvm(NvmOpcode::READ, CommandId(0), nsid);
        for (command, wanted) in [
            (read(MEMORY), Status::SUCCESS),
            (read(Nsid(2)), Status::INVALID_NAMESPACE_OR_FORMAT),
            (read(Nsid::BROADCAST), Status::INVALID_NAMESPACE_OR_FORMAT),
            (read(MEMORY).with_slba(Lba(u64::MAX)), Status::LBA_OUT_OF_RANGE),
            (Command::nvm(NvmOpcode(0x7F), CommandId(0), MEMORY), Status::INVALID_OPCODE),
        ] {
            let buffer = controller.allocate(512).expect("memory");
            queue.submit_command(command, Some(buffer), 0).expect("room");
            let done = queue.wait_next().expect("outstanding");
            let found = match done.result {
                Ok(_) => Status::SUCCESS,
                Err(IoError::Status(status)) => status.code(),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(found, wanted, "{command:?}");
        }
    }
    assert!(target.stop().success());
}

#[test]
fn deep_queues_of_several_threads_are_served_by_polling_and_by_interrupts() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller =
            connect_with(&target, endpoint, &Options { interrupts: true, ..options() });
        let namespace = controller.namespace(MEMORY).expect("there");
        std::thread::scope(|scope| {
            for (thread, interrupt) in (0_u64..).zip([false, true, true, false]) {
                let (controller, namespace) = (&controller, &namespace);
                scope.spawn(move || {
                    let options = QueueOptions { depth: 128, interrupt };
                    let mut queue = controller.queue_pair(&options).expect("a queue pair");
                    let memory = controller.allocate(128 * 4096).expect("memory");
                    let base = thread * 16_384;
                    for (index, buffer) in (0..).zip(memory.into_chunks(4096)) {
                        let write = Request::write(namespace, Lba(base + index * 8), buffer);
                        queue.submit(write.with_token(index)).expect("room");
                    }
                    let mut left = 4000;
                    while let Some(done) = queue.wait_next() {
                        assert_eq!(done.result, Ok(0));
                        if left > 0 {
                            left -= 1;
                            let buffer = done.buffer.expect("back");
                            let read = Request::read(namespace, Lba(base + done.token * 8), buffer);
                            queue.submit(read.with_token(done.token)).expect("room");
                        }
                    }
                    round_trip(controller, &mut queue, namespace, base, 100);
                });
            }
        });
    }
    assert!(target.stop().success());
}
