//! A backend behind its real socket, used by a worker that is this test.

mod drained;
mod rig;
mod stuck;

use bdev::request::{ErrorKind, Op, Request};
use ipc::event::EventFd;
use rig::{
    DEVICE, GUEST, add_region, apply, channels, close, describe, guest, open, range, remove_region,
    run, start, write_and_read_back,
};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vireo_backend::serve::Command;
use vireo_proto::handoff::{
    AddRegion, Bdev, ChannelKind, EraseBdev, FileDriver, FlushBdev, OpenChannel, bdev as pb,
    request,
};
use vireo_proto::{ErrorCode, id_to_bytes};

#[tokio::test]
async fn every_driver_serves_by_every_channel_it_has() {
    let running = start();
    let session = running.connect();
    assert_eq!(apply(&session, running.bdevs(DEVICE)).await.failures, []);
    let guest = guest();
    add_region(&session, &guest).await;
    let kinds = [
        ("null0", false, ChannelKind::LeaseNull),
        ("null0", true, ChannelKind::Ring),
        ("mem0", false, ChannelKind::LeaseMalloc),
        ("mem0", true, ChannelKind::Ring),
        ("file0", false, ChannelKind::Ring),
    ];
    for (index, (bdev, force_ring, kind)) in kinds.into_iter().enumerate() {
        let (mut channel, grant) = open(&session, bdev, force_ring).await.unwrap();
        assert_eq!(grant.kind(), kind, "{bdev}");
        assert_eq!(grant.size_bytes, DEVICE);
        if bdev == "null0" {
            let request = Request::new(Op::Read, 0, 4096, range(0, 4096), 1);
            assert_eq!(run(&mut channel, &guest, &request).await, Ok(()));
        } else {
            write_and_read_back(&mut channel, &guest, index as u8 + 1).await;
            let beyond = Request::new(Op::Read, DEVICE, 4096, range(0, 4096), 1);
            assert_eq!(run(&mut channel, &guest, &beyond).await, Err(ErrorKind::OutOfRange));
            // Block 0 is all zeroes so far: the pair takes effect the first time only.
            guest.region.whole().sub(0, 512).unwrap().fill(0);
            guest.region.whole().sub(512, 512).unwrap().fill(7);
            let pair = Request::new(Op::CompareAndWrite, 0, 512, range(0, 1024), 1);
            let first = run(&mut channel, &guest, &pair).await;
            assert_eq!(run(&mut channel, &guest, &pair).await, Err(ErrorKind::CompareFailed));
            assert!(first == Ok(()) || bdev == "mem0" && force_ring, "{bdev}: {first:?}");
        }
        close(&session, &grant).await.unwrap();
        let error = close(&session, &grant).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NotFound));
    }
    remove_region(&session).await;
}

#[tokio::test]
async fn a_lease_and_a_ring_see_the_same_data() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    let (mut lease, _) = open(&session, "mem0", false).await.unwrap();
    let (mut ring, _) = open(&session, "mem0", true).await.unwrap();
    write_and_read_back(&mut lease, &guest, 0x5a).await;
    let read = Request::new(Op::Read, 8192, 4096, range(131072, 4096), 9);
    run(&mut ring, &guest, &read).await.unwrap();
    assert!(guest.region.whole().sub(131072, 4096).unwrap().compare(&[0x5a; 4096]));
    // Deallocation by lease goes by the ring beside it.
    let deallocate = Request::new(Op::Deallocate, 8192, 4096, &[], 9);
    run(&mut lease, &guest, &deallocate).await.unwrap();
    run(&mut lease, &guest, &read).await.unwrap();
    assert!(guest.region.whole().sub(131072, 4096).unwrap().compare(&[0; 4096]));
}

#[tokio::test]
async fn requests_on_memory_that_is_not_there_fail_alone() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    let (mut ring, _) = open(&session, "file0", true).await.unwrap();
    let read = Request::new(Op::Read, 0, 4096, range(0, 4096), 9);
    assert_eq!(run(&mut ring, &guest, &read).await, Err(ErrorKind::Fault));
    add_region(&session, &guest).await;
    assert_eq!(run(&mut ring, &guest, &read).await, Ok(()));
    let outside = range(GUEST - 512, 4096);
    let read_outside = Request::new(Op::Read, 0, 4096, outside, 9);
    assert_eq!(run(&mut ring, &guest, &read_outside).await, Err(ErrorKind::Fault));
    remove_region(&session).await;
    assert_eq!(run(&mut ring, &guest, &read).await, Err(ErrorKind::Fault));
}

#[tokio::test]
async fn another_connection_has_neither_the_channels_nor_the_memory() {
    let running = start();
    let (session, other) = (running.connect(), running.connect());
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    let (mut ring, _) = open(&other, "mem0", true).await.unwrap();
    let read = Request::new(Op::Read, 0, 4096, range(0, 4096), 9);
    assert_eq!(run(&mut ring, &guest, &read).await, Err(ErrorKind::Fault));
    let (_, grant) = open(&session, "mem0", true).await.unwrap();
    let error = close(&other, &grant).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    close(&session, &grant).await.unwrap();
}

#[tokio::test]
async fn a_closed_connection_gives_leases_and_memory_back() {
    let running = start();
    let manager = running.connect();
    apply(&manager, running.bdevs(DEVICE)).await;
    for round in 0..3 {
        let session = running.connect();
        let guest = guest();
        add_region(&session, &guest).await;
        let (_, grant) = open(&session, "mem0", false).await.unwrap();
        assert_eq!(grant.lease_number, 0, "round {round}");
        let weak = Arc::downgrade(&guest.region);
        drop((session, guest));
        assert!(weak.upgrade().is_none());
        let deadline = Instant::now() + Duration::from_secs(60);
        while channels(&manager).await > 0 {
            assert!(Instant::now() < deadline, "the channel stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn devices_grow_live_and_never_shrink() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    let (mut lease, _) = open(&session, "mem0", false).await.unwrap();
    let (mut ring, _) = open(&session, "file0", false).await.unwrap();
    let beyond = Request::new(Op::Read, DEVICE, 4096, range(0, 4096), 1);
    assert_eq!(run(&mut lease, &guest, &beyond).await, Err(ErrorKind::OutOfRange));
    assert_eq!(apply(&session, running.bdevs(2 * DEVICE)).await.failures, []);
    for bdev in ["null0", "mem0", "file0"] {
        assert_eq!(describe(&session, bdev).await.size_bytes, 2 * DEVICE, "{bdev}");
    }
    // By the channels that were opened before.
    assert_eq!(run(&mut lease, &guest, &beyond).await, Ok(()));
    assert_eq!(run(&mut ring, &guest, &beyond).await, Ok(()));
    let failures = apply(&session, running.bdevs(DEVICE)).await.failures;
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures[0].message.contains("does not shrink"), "{failures:?}");
    // A file that grew by itself is seen when the size is left to it.
    let path = running.directory.path().join("disk");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3 * DEVICE).unwrap();
    let mut bdevs = running.bdevs(2 * DEVICE);
    bdevs[2].size_bytes = 0;
    assert_eq!(apply(&session, bdevs).await.failures, []);
    assert_eq!(describe(&session, "file0").await.size_bytes, 3 * DEVICE);
}

#[tokio::test]
async fn what_is_wrong_is_told_and_the_rest_is_done() {
    let running = start();
    let session = running.connect();
    let mut bdevs = running.bdevs(DEVICE);
    let missing = Path::new("/nonexistent/disk").display().to_string();
    bdevs.push(Bdev {
        name: "file1".into(),
        driver: Some(pb::Driver::File(FileDriver { path: missing, ..FileDriver::default() })),
        ..Bdev::default()
    });
    bdevs.push(Bdev { name: "none".into(), ..Bdev::default() });
    let failures = apply(&session, bdevs).await.failures;
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert_eq!(failures[0].object, "bdev file1");
    assert!(failures[0].message.contains("/nonexistent/disk"), "{failures:?}");
    assert_eq!(describe(&session, "mem0").await.size_bytes, DEVICE);
    let error = open(&session, "file1", false).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    // The same file twice: its lock says so, after a while.
    let mut twice = running.bdevs(DEVICE);
    twice.push(Bdev { name: "file2".into(), ..twice[2].clone() });
    let failures = apply(&session, twice).await.failures;
    assert!(failures[0].message.contains("locked by another"), "{failures:?}");
}

#[tokio::test]
async fn erase_and_flush_reach_the_device_and_removal_ends_its_rings() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    for bdev in ["mem0", "file0"] {
        let (mut channel, _) = open(&session, bdev, true).await.unwrap();
        write_and_read_back(&mut channel, &guest, 0x77).await;
        let flush = FlushBdev { bdev: bdev.into() };
        session.tell(request::Body::FlushBdev(flush), &[]).await.unwrap();
        let erase = EraseBdev { bdev: bdev.into() };
        session.tell(request::Body::EraseBdev(erase), &[]).await.unwrap();
        let read = Request::new(Op::Read, 8192, 4096, range(0, 4096), 5);
        run(&mut channel, &guest, &read).await.unwrap();
        assert!(guest.region.whole().sub(0, 4096).unwrap().compare(&[0; 4096]), "{bdev}");
        let left: Vec<Bdev> =
            running.bdevs(DEVICE).into_iter().filter(|other| other.name != bdev).collect();
        assert_eq!(apply(&session, left).await.failures, []);
        assert_eq!(run(&mut channel, &guest, &read).await, Err(ErrorKind::Gone), "{bdev}");
        assert_eq!(apply(&session, running.bdevs(DEVICE)).await.failures, []);
    }
}

#[tokio::test]
async fn requests_are_refused_that_are_not_the_backends_or_malformed() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let reload = request::Body::Reload(vireo_proto::handoff::Reload {});
    assert_eq!(session.tell(reload, &[]).await.unwrap_err().code(), Some(ErrorCode::Unsupported));
    let bad_id = OpenChannel { controller_id: vec![1], bdev: "mem0".into(), force_ring: false };
    let event = EventFd::create().unwrap();
    let error = session.tell(request::Body::OpenChannel(bad_id), &[event.as_fd()]).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
    let add = AddRegion { controller_id: id_to_bytes(1), region_id: u32::MAX, size: GUEST };
    let guest = guest();
    let error = session.tell(request::Body::AddRegion(add.clone()), &[guest.fd.as_fd()]).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
    // No descriptor, or one that is no memory.
    let error = session.tell(request::Body::AddRegion(add.clone()), &[]).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
    assert!(session.tell(request::Body::AddRegion(add), &[event.as_fd()]).await.is_err());
    running.serve.send(Command::Stop).await.unwrap();
}
