//! An endpoint as a client sees it: a real socket, a backend that only describes its bdev, no worker.

use crate::support::{CC, CSTS, Guest, MEMORY, Target, client, read_write, run, with_endpoint};
use ipc::event::EventFd;
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vfio_user::client::Client;
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::irq::IrqIndex;
use vfio_user::region::RegionIndex;
use vireo_frontend::endpoint::MAX_REQUESTS;
use vireo_proto::handoff::DoorbellMode;

#[test]
fn the_admin_queue_runs_by_written_doorbells() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        let completion = guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
        assert_eq!(completion[12], 7, "cid");
        assert_eq!(u16::from_le_bytes([completion[14], completion[15]]) >> 1, 0, "status");
        let mut serial = [0; 20];
        guest.memory.read_exact_at(&mut serial, 0x3004).unwrap();
        assert_eq!(&serial, b"SERIAL              ");
        let info = guest.client.region_info(RegionIndex::BAR0).unwrap();
        assert!(info.areas.is_empty(), "doorbells can be mapped though they are not to be");
    });
}

#[test]
fn mapped_doorbells_are_seen_though_no_worker_watches_them() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        let info = guest.client.region_info(RegionIndex::BAR0).unwrap();
        let page = std::fs::File::from(info.fd.unwrap().try_clone().unwrap());
        guest.identify(|_| page.write_all_at(&1_u32.to_le_bytes(), 0x1000).unwrap());
    });
}

#[test]
fn clients_come_and_go_and_find_the_controller_disabled() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        for _ in 0..3 {
            let mut guest = Guest::attach(socket);
            assert_eq!(guest.register(CSTS), 0);
            guest.enable();
            guest.client.dma_unmap(DmaUnmap::All).unwrap();
        }
        // One that says nothing at all, and one whose message is cut off.
        drop(Client::connect(socket).unwrap());
        let mut cut = Client::connect(socket).unwrap();
        cut.send_raw(&[0; 7], &[]).unwrap();
        drop(cut);
        assert_eq!(Guest::attach(socket).register(CSTS), 0);
    });
}

#[test]
fn a_reset_disables_and_keeps_memory() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        guest.enable();
        guest.client.reset().unwrap();
        assert_eq!(guest.register(CSTS), 0);
        assert_eq!(guest.register(CC), 0);
        guest.enable();
        guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
    });
}

#[test]
fn a_reset_forgets_interrupts_that_found_no_eventfd() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        for reset in [false, true] {
            let mut guest = Guest::attach(socket);
            guest.enable();
            guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
            if reset {
                guest.client.reset().unwrap();
            }
            let mut pending = [0; 8];
            guest.client.region_read(RegionIndex::BAR5, 0, &mut pending).unwrap();
            assert_eq!(pending[0] & 1 == 0, reset);
            let event = EventFd::create().unwrap();
            guest.client.set_eventfds(IrqIndex::MSIX, 0, &[&event]).unwrap();
            assert_eq!(event.drain().unwrap() == 0, reset, "after a reset: {reset}");
        }
    });
}

#[test]
fn requests_that_resets_leave_behind_do_not_pile_up() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        // Each normal shutdown asks the backend for a flush, and no reset waits for it.
        for _ in 0..MAX_REQUESTS {
            guest.enable();
            guest.write(CC, &0x0046_4001_u32.to_le_bytes());
            assert_eq!(guest.register(CSTS) & 0xc, 4, "the flush is under way");
            guest.write(CC, &0_u32.to_le_bytes());
        }
        guest.enable();
        guest.write(CC, &0x0046_4001_u32.to_le_bytes());
        assert_eq!(guest.register(CSTS) & 0xc, 8, "one more is not asked for");
    });
}

#[test]
fn memory_that_is_no_memory_is_refused_and_the_client_stays() {
    with_endpoint(DoorbellMode::Mapped, |socket| {
        let mut guest = Guest::attach(socket);
        let access = read_write();
        let pipe: OwnedFd = std::io::pipe().unwrap().1.into();
        let short = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).unwrap();
        for fd in [&pipe, &short] {
            let mapped = guest.client.dma_map(Iova(MEMORY), 4096, access, Some((fd.as_fd(), 0)));
            assert!(mapped.is_err());
        }
        // Without a descriptor the range exists, and DMA to it fails.
        guest.client.dma_map(Iova(MEMORY), 4096, access, None).unwrap();
        guest.enable();
    });
}

#[test]
fn a_controller_segment_is_sealed_for_its_readers() {
    let segment = Segment::<ipc::layout::controller::ControllerLayout>::create("test", 1).unwrap();
    let reader = std::fs::File::from(segment.read_only_fd().unwrap());
    assert!(reader.write_at(&[1], 0).is_err(), "a worker could write the controller segment");
}

#[test]
fn an_endpoint_that_cannot_start_leaves_no_socket_behind() {
    run(async {
        let target = Target::start();
        let mut wanted = target.targets(DoorbellMode::Mapped);
        // Its socket is there before it is found out that no function can be so.
        wanted.endpoints[0].max_transfer_bytes = 1;
        let failures = target.apply(wanted).await;
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(!target.socket().exists(), "a socket that nobody serves is left");
        assert_eq!(target.apply(target.targets(DoorbellMode::Mapped)).await, []);
        let socket = target.socket();
        client(move || assert_eq!(Guest::attach(&socket).register(CSTS), 0)).await;
        target.stop().await;
    });
}

#[test]
fn only_a_dead_one_s_socket_is_replaced() {
    run(async {
        let target = Target::start();
        let (wanted, socket) = (target.targets(DoorbellMode::Mapped), target.socket());
        let directory = socket.parent().unwrap().to_owned();
        std::fs::create_dir(&directory).unwrap();
        // What a killed frontend leaves: a file that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        // What another leaves that is just about to replace it: the lock.
        let lock = std::fs::File::open(&directory).unwrap();
        lock.try_lock().unwrap();
        let failures = target.apply(wanted.clone()).await;
        assert!(failures[0].message.contains("served by another process"), "{failures:?}");
        assert!(socket.exists(), "it is the other's to replace");
        drop(lock);
        // Somebody who serves there and knows of no lock.
        std::fs::remove_file(&socket).unwrap();
        let living = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let failures = target.apply(wanted.clone()).await;
        assert!(failures[0].message.contains("served by another process"), "{failures:?}");
        drop(living);
        assert_eq!(target.apply(wanted).await, []);
        client(move || assert_eq!(Guest::attach(&socket).register(CSTS), 0)).await;
        target.stop().await;
    });
}

/// The Command register.
fn command(guest: &mut Guest, value: u16) {
    guest.client.region_write(RegionIndex::CONFIG, 4, &value.to_le_bytes()).unwrap();
}

#[test]
fn without_bus_mastering_no_admin_command_is_served() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        let event = EventFd::create().unwrap();
        guest.client.set_eventfds(IrqIndex::MSIX, 0, &[&event]).unwrap();
        command(&mut guest, 6);
        guest.enable();
        command(&mut guest, 2);
        let completion = guest.identify(|guest| {
            guest.write(0x1000, &1_u32.to_le_bytes());
            std::thread::sleep(std::time::Duration::from_millis(100));
            let mut posted = [0; 16];
            guest.memory.read_exact_at(&mut posted, 0x2000).unwrap();
            assert_eq!((posted, event.drain().unwrap()), ([0; 16], 0), "dma without the right to");
            command(guest, 6);
        });
        assert_eq!(completion[12], 7, "cid");
        assert!(event.drain().unwrap() > 0);
        // A reset takes the bit away, and with it what was said by it.
        command(&mut guest, 2);
        guest.client.reset().unwrap();
        guest.memory.write_all_at(&[0; 4096], 0x2000).unwrap();
        guest.enable();
        guest.identify(|guest| guest.write(0x1000, &1_u32.to_le_bytes()));
    });
}
