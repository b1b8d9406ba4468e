//! Interrupts that trap whoever raises them.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd as RawEventFd};
use nvme_spec::feature::FeatureId;
use nvme_spec::{Lba, Nsid, NvmOpcode};
use vfio_user::client::ClientError;
use vfio_user::irq::{IrqIndex, IrqSetFlags};
use vfio_user::message::IrqSet;
use vireo_tests::host::memory::memfd;
use vireo_tests::host::{Host, commands};

use crate::{MEMORY, Stage};

/// An eventfd that blocks, and is full: the next write waits for ever.
fn full_and_blocking() -> OwnedFd {
    RawEventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)
        .map(|event| {
            event.write(u64::MAX - 1).expect("fill the counter");
            event.into()
        })
        .expect("eventfd")
}

#[test]
fn a_full_eventfd_that_blocks_fails_that_controller_alone() {
    let stage = Stage::start();
    let mut host = stage.host();
    let trap = full_and_blocking();
    host.transport.client.set_eventfds(IrqIndex::MSIX, 1, &[trap.as_fd()]).unwrap();
    let buffer = host.memory.allocate(512);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1);
    let read = host.memory.with_prps(read, buffer);
    // The queue's vector is the second; nobody reaps, so that it is signalled.
    host.submit(0, read);
    stage.neighbour_goes_on();
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn a_full_eventfd_of_the_admin_queue_holds_up_nobody_else() {
    let stage = Stage::start();
    let mut host = stage.host();
    let trap = full_and_blocking();
    host.transport.client.set_eventfds(IrqIndex::MSIX, 0, &[trap.as_fd()]).unwrap();
    host.post_admin(commands::get_features(FeatureId::NUMBER_OF_QUEUES, Nsid::NONE));
    // The neighbour's admin queue is served by the same process.
    stage.neighbour_goes_on();
    drop(host);
    stage.end();
}

#[test]
fn what_is_no_eventfd_is_refused() {
    let stage = Stage::start();
    let mut host = stage.host();
    let (pipe, _reader) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds: [OwnedFd; 4] = [pipe, socket.into(), file.into(), memfd(4096)];
    for fd in fds {
        let result = host.transport.client.set_eventfds(IrqIndex::MSIX, 1, &[fd.as_fd()]);
        assert!(matches!(result, Err(ClientError::Refused { .. })), "{result:?}");
    }
    // The vector that was there before still fires.
    let buffer = host.memory.allocate(512);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1);
    let read = host.memory.with_prps(read, buffer);
    host.submit(0, read);
    host.await_interrupt(1);
    drop(host);
    stage.end();
}

#[track_caller]
fn refused(host: &mut Host, set: IrqSet, data: &[u8]) {
    let result = host.transport.client.set_irqs(set, data, &[]);
    assert!(matches!(result, Err(ClientError::Refused { .. })), "{set:?}: {result:?}");
}

#[test]
fn ranges_past_the_vectors_are_refused() {
    let stage = Stage::start();
    let mut host = stage.host();
    let count = host.transport.client.irq_info(IrqIndex::MSIX).unwrap().count;
    let eventfds = IrqSetFlags::new().with_data_eventfd(true).with_trigger(true);
    let none = IrqSetFlags::new().with_data_none(true).with_trigger(true);
    let bools = IrqSetFlags::new().with_data_bool(true).with_trigger(true);
    let set = |flags, index, start, count| IrqSet { argsz: 0, flags, index, start, count };
    for flags in [eventfds, none] {
        for (start, number) in
            [(count, 1), (0, count + 1), (u32::MAX, 2), (1, u32::MAX), (u32::MAX, u32::MAX)]
        {
            refused(&mut host, set(flags, IrqIndex::MSIX, start, number), &[]);
        }
    }
    refused(&mut host, set(bools, IrqIndex::MSIX, 0, count + 1), &vec![1; count as usize + 1]);
    refused(&mut host, set(bools, IrqIndex::MSIX, 0, 4), &[1]);
    for index in [IrqIndex::INTX, IrqIndex::MSI, IrqIndex(77)] {
        refused(&mut host, set(eventfds, index, 0, 1), &[]);
    }
    // Flags that contradict each other.
    let both = IrqSetFlags::new().with_data_none(true).with_data_bool(true).with_trigger(true);
    refused(&mut host, set(both, IrqIndex::MSIX, 0, 1), &[]);
    refused(&mut host, set(IrqSetFlags::new(), IrqIndex::MSIX, 0, 1), &[]);
    drop(host);
    stage.end();
}

#[test]
fn a_vector_taken_away_is_silent() {
    let stage = Stage::start();
    let mut host = stage.host();
    let flags = IrqSetFlags::new().with_data_eventfd(true).with_trigger(true);
    let set = IrqSet { argsz: 0, flags, index: IrqIndex::MSIX, start: 1, count: 1 };
    host.transport.client.set_irqs(set, &[], &[]).unwrap();
    let buffer = host.memory.allocate(512);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 1);
    let read = host.memory.with_prps(read, buffer);
    assert!(host.io(0, read).status().is_success());
    stage.neighbour_goes_on();
    let old = vireo_tests::host::Transport::vector(&host.transport, 1).unwrap();
    assert_eq!(old.drain().unwrap(), 0, "the eventfd that was taken away is not signalled");
    // Whoever is replaced is silent from the reply on, and whoever takes the place is told.
    let mut old = ipc::event::EventFd::create().unwrap();
    host.transport.client.set_eventfds(IrqIndex::MSIX, 1, &[old.as_fd()]).unwrap();
    for round in 0..100 {
        let new = ipc::event::EventFd::create().unwrap();
        host.transport.client.set_eventfds(IrqIndex::MSIX, 1, &[new.as_fd()]).unwrap();
        old.drain().unwrap();
        let cid = host.submit(0, read);
        vireo_tests::wait::until("the new eventfd", || new.drain().unwrap() > 0);
        assert_eq!(host.next_completion(0).cid, cid);
        assert_eq!(old.drain().unwrap(), 0, "round {round}: the old eventfd is signalled");
        old = new;
    }
    host.transport.client.set_irqs(set, &[], &[]).unwrap();
    // A vector that comes later tells of what was missed at most, and then works.
    let event = ipc::event::EventFd::create().unwrap();
    host.transport.client.set_eventfds(IrqIndex::MSIX, 1, &[event.as_fd()]).unwrap();
    event.drain().unwrap();
    host.submit(0, read);
    vireo_tests::wait::until("the new eventfd", || event.drain().unwrap() > 0);
    drop(host);
    stage.end();
}
