//! What a client's acts wait for at the workers.

use crate::support::{BOUND, Guest, Target, client, memory, read_write, run};
use crate::worker::FakeWorker;
use ipc::event::EventFd;
use nvme_spec::CommandId;
use nvme_spec::command::{AdminOpcode, Command};
use nvme_spec::feature::FeatureId;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;
use vfio_user::Header;
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::irq::IrqIndex;
use vfio_user::message::DmaUnmapBody;
use vfio_user::region::RegionIndex;
use vireo_proto::handoff::DoorbellMode;
use zerocopy::IntoBytes;

/// How long an unmap that waits is seen to wait.
const A_WHILE: Duration = Duration::from_millis(500);
/// How long a configuration write waits for a worker that does not answer.
const QUIET_TIME: Duration = Duration::from_secs(3);
/// More admin commands than are handled at a time.
const BURST: u64 = 60;
/// Where extra memory is mapped.
const EXTRA: u64 = 1 << 40;

/// Maps and unmaps until an unmap is not answered: the worker is attached then. Returns with the unmap under way.
fn unmap_that_waits(guest: &mut Guest) {
    let until = Instant::now() + BOUND;
    let extra = memory(4096);
    loop {
        assert!(Instant::now() < until, "unmaps do not wait for the worker");
        guest.client.set_timeout(BOUND);
        let fd = Some((extra.as_fd(), 0));
        guest.client.dma_map(Iova(EXTRA), 4096, read_write(), fd).unwrap();
        let body = DmaUnmapBody { argsz: 24, address: EXTRA, size: 4096, ..Default::default() };
        let message =
            Header::command(9, vfio_user::Command::DMA_UNMAP, 24).with_body(body.as_bytes());
        guest.client.send_raw(&message, &[]).unwrap();
        guest.client.set_timeout(A_WHILE);
        if guest.client.receive_raw().is_err() {
            return;
        }
    }
}

/// A target that serves, with a worker of ours.
async fn serving(doorbells: DoorbellMode) -> (Target, Arc<FakeWorker>, AbortHandle) {
    let target = Target::start();
    let worker = Arc::new(FakeWorker::default());
    let server = target.start_worker(&worker);
    assert_eq!(target.apply(target.targets(doorbells)).await, []);
    (target, worker, server)
}

/// A guest whose controller the worker has.
fn attached(socket: &Path, worker: &FakeWorker) -> Guest {
    let mut guest = Guest::attach(socket);
    worker.sees_blocking("add 0");
    unmap_that_waits(&mut guest);
    worker.acknowledge_unmaps();
    guest.client.set_timeout(BOUND);
    guest.client.receive_raw().unwrap();
    guest
}

#[test]
fn memory_that_a_worker_refused_is_unmapped_when_the_worker_says_so() {
    run(async {
        let (target, worker, _server) = serving(DoorbellMode::Mapped).await;
        worker.refuse("add 1");
        let (socket, of_client) = (target.socket(), Arc::clone(&worker));
        client(move || {
            let worker = of_client;
            let mut guest = Guest::attach(&socket);
            worker.sees_blocking("add 0");
            unmap_that_waits(&mut guest);
            assert!(worker.saw("add 1"), "it was offered");
            worker.acknowledge_unmaps();
            guest.client.set_timeout(BOUND);
            assert!(!guest.client.receive_raw().unwrap().header.flags.error());
            worker.sees_blocking("remove 1");
        })
        .await;
        target.stop().await;
    });
}

#[test]
fn an_unmap_ends_when_the_worker_is_dead() {
    run(async {
        let (target, worker, server) = serving(DoorbellMode::Mapped).await;
        let (socket, of_client) = (target.socket(), Arc::clone(&worker));
        client(move || {
            let mut guest = Guest::attach(&socket);
            of_client.sees_blocking("add 0");
            unmap_that_waits(&mut guest);
            server.abort();
            guest.client.set_timeout(BOUND);
            assert!(!guest.client.receive_raw().unwrap().header.flags.error());
            guest.client.dma_unmap(DmaUnmap::All).unwrap();
        })
        .await;
        target.stop().await;
    });
}

#[test]
fn an_unmap_waits_for_what_a_dead_worker_left_with_backends() {
    run(async {
        let (target, worker, server) = serving(DoorbellMode::Mapped).await;
        let (socket, of_client) = (target.socket(), Arc::clone(&worker));
        let backend = Arc::clone(&target.backend);
        client(move || {
            let mut guest = Guest::attach(&socket);
            of_client.sees_blocking("add 0");
            unmap_that_waits(&mut guest);
            backend.set_busy(true);
            server.abort();
            let until = Instant::now() + BOUND;
            while backend.asked() < 2 {
                assert!(Instant::now() < until, "nobody asks the backend");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(guest.client.receive_raw().is_err(), "answered too early");
            backend.set_busy(false);
            guest.client.set_timeout(BOUND);
            assert!(!guest.client.receive_raw().unwrap().header.flags.error());
        })
        .await;
        target.stop().await;
    });
}

#[test]
fn clearing_bus_mastering_waits_for_what_a_worker_has_in_flight() {
    run(async {
        let (target, worker, _server) = serving(DoorbellMode::Mapped).await;
        let (socket, of_client) = (target.socket(), Arc::clone(&worker));
        client(move || {
            let worker = of_client;
            let mut guest = attached(&socket, &worker);
            let eventfd = EventFd::create().unwrap();
            guest.client.set_eventfds(IrqIndex::MSIX, 0, &[&eventfd]).unwrap();
            assert_eq!(worker.count("vectors"), 1);
            guest.enable();
            let command = |guest: &mut Guest, value: u16| {
                let config = RegionIndex::CONFIG.0;
                let [at, place, count] = [
                    4_u64.to_le_bytes().to_vec(),
                    config.to_le_bytes().to_vec(),
                    2_u32.to_le_bytes().to_vec(),
                ];
                let body = [at, place, count, value.to_le_bytes().to_vec()].concat();
                guest.client.post(vfio_user::Command::REGION_WRITE, &body, &[]).unwrap()
            };
            for acknowledges in [true, false] {
                let set = command(&mut guest, 6);
                guest.client.wait(set).unwrap();
                let begun = Instant::now();
                let cleared = command(&mut guest, 2);
                if acknowledges {
                    guest.client.set_timeout(A_WHILE);
                    let answered = guest.client.wait(cleared).is_ok();
                    let early = answered && begun.elapsed() < QUIET_TIME;
                    assert!(!early, "the worker has not said a word");
                    worker.acknowledge_all();
                    guest.client.set_timeout(BOUND);
                    if !answered {
                        guest.client.wait(cleared).unwrap();
                    }
                    // It has no eventfd to signal any more.
                    assert_eq!(worker.count("vectors"), 2);
                } else {
                    // A device that takes for ever does not cost the client its device.
                    guest.client.wait(cleared).unwrap();
                    assert!(begun.elapsed() > A_WHILE);
                }
            }
        })
        .await;
        worker.keep_acknowledging();
        target.stop().await;
    });
}

#[test]
fn a_worker_that_dies_and_comes_back_between_two_looks_gets_the_client_again() {
    run(async {
        let (target, worker, server) = serving(DoorbellMode::Mapped).await;
        let (socket, of_client) = (target.socket(), Arc::clone(&worker));
        let guest = client(move || {
            let guest = Guest::attach(&socket);
            of_client.sees_blocking("add 0");
            guest
        })
        .await;
        server.abort();
        let successor = Arc::new(FakeWorker::default());
        // The name is free once the server's task is gone.
        tokio::task::yield_now().await;
        let _server = target.start_worker(&successor);
        successor.sees("attach vm0").await;
        successor.sees("add 0").await;
        drop(guest);
        target.stop().await;
    });
}

#[test]
fn a_burst_of_admin_commands_is_served_though_the_doorbell_rings_once() {
    run(async {
        let (target, worker, _server) = serving(DoorbellMode::Shadow).await;
        let (socket, of_client) = (target.socket(), Arc::clone(&worker));
        client(move || {
            let worker = of_client;
            // The frontend need not look at the doorbells by itself.
            let mut guest = attached(&socket, &worker);
            guest.enable_with(64);
            let mut features = Command::admin(AdminOpcode::GET_FEATURES, CommandId(1));
            features.cdw10 = u32::from(FeatureId::NUMBER_OF_QUEUES.0);
            let bytes: Vec<u8> =
                features.into_words().iter().flat_map(|w| w.to_le_bytes()).collect();
            for slot in 0..BURST {
                guest.memory.write_all_at(&bytes, 0x1000 + 64 * slot).unwrap();
            }
            guest.write(0x1000, &(BURST as u32).to_le_bytes());
            let until = Instant::now() + BOUND;
            let mut last = [0; 16];
            while last[14] & 1 == 0 {
                assert!(Instant::now() < until, "commands are left in the queue");
                std::thread::sleep(Duration::from_millis(1));
                guest.memory.read_exact_at(&mut last, 0x2000 + 16 * (BURST - 1)).unwrap();
            }
        })
        .await;
        target.stop().await;
    });
}
