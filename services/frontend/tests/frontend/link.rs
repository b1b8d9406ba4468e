//! A link and a worker: what counts as let go, and what follows from a death.

use crate::support::{memory, run};
use crate::worker::FakeWorker;
use ipc::doorbell::DoorbellPage;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId, RegionPolicy};
use ipc::layout::controller::ControllerLayout;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nvme::{Subsystem, SubsystemConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use vireo_frontend::backends::Backends;
use vireo_frontend::link::{Assignment, ClientSeat, Link, LinkConfig, Progress};
use vireo_frontend::store::Store;
use vireo_frontend::subsystem::SharedSubsystem;

const ID: u128 = 7;
/// Longer than any call's own limit was.
const LONG: Duration = Duration::from_secs(60);
/// How long it is looked that nothing happens.
const A_WHILE: Duration = Duration::from_millis(200);

/// One endpoint's way to a worker, and the client that it has.
struct End {
    link: Link,
    notify: Arc<Notify>,
    assignment: Assignment,
}

impl End {
    fn new(worker: &Path, name: &str) -> Self {
        let segment = Segment::<ControllerLayout>::create("controller", ID).unwrap();
        let queues = Segment::<QueuesLayout>::create("queues", ID).unwrap();
        let notify = Arc::new(Notify::new());
        let link = Link::new(LinkConfig {
            worker: worker.to_owned(),
            sender: "frontend-test".to_owned(),
            index: 0,
            queues: queues.fd().try_clone_to_owned().unwrap(),
            notify: Arc::clone(&notify),
            name: "worker-w0".to_owned(),
            backends: Arc::new(Backends::new(worker.into(), "frontend-test".to_owned())),
            subsystem: subsystem(worker.parent().unwrap()),
        });
        let client = ClientSeat {
            generation: 3,
            controller_id: ID,
            name: name.to_owned(),
            segment: segment.read_only_fd().unwrap(),
            doorbells: DoorbellPage::create().unwrap().client_fd().unwrap(),
            kick: EventFd::create().unwrap().into_fd(),
            limits: None,
        };
        let assignment = Assignment { client: Some(Arc::new(client)), ..Assignment::default() };
        Self { link, notify, assignment }
    }

    fn assign(&self) {
        self.link.assign(self.assignment.clone());
    }

    fn add_region(&mut self, id: u32) {
        let region = Region::map(memory(4096), 4096, &RegionPolicy::default()).unwrap();
        self.assignment.wanted.regions.insert(RegionId(id), region);
        self.assignment.wanted.number += 1;
    }

    async fn until(&self, what: &str, reached: impl Fn(&Progress) -> bool) {
        let wait = async {
            while !reached(&self.link.progress()) {
                self.notify.notified().await;
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.link.progress());
    }

    async fn serves(&self) {
        let number = self.assignment.wanted.number;
        self.until("served", |p| p.serving == Some(3) && p.handed == number).await;
    }
}

/// A subsystem without namespaces.
fn subsystem(directory: &Path) -> Arc<SharedSubsystem> {
    let config = SubsystemConfig {
        nqn: "nqn.2026-11.org.example:s0".to_owned(),
        serial: "SERIAL".to_owned(),
        model: "Model".to_owned(),
        firmware: "1".to_owned(),
        shared: true,
    };
    let store = Store::open(directory, "s0").unwrap();
    Arc::new(SharedSubsystem::new("s0".to_owned(), Subsystem::new(config).unwrap(), store))
}

fn start() -> (tempfile::TempDir, PathBuf, Arc<FakeWorker>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker-w0.sock");
    (directory, path, Arc::new(FakeWorker::default()))
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_answer_keeps_its_seat() {
    let (_directory, path, worker) = start();
    let _server = worker.listen(&path);
    let mut end = End::new(&path, "vm0");
    end.assign();
    end.serves().await;
    worker.hold("add 1");
    end.add_region(1);
    end.assign();
    worker.sees("add 1").await;
    tokio::time::sleep(LONG).await;
    let progress = end.link.progress();
    assert_eq!((progress.holds, progress.serving, progress.life), (Some(3), Some(3), 0));
    assert_eq!(progress.handed, 0);
    worker.release("add 1");
    end.serves().await;
    assert_eq!(worker.count("attach vm0"), 1);
    // The same of its farewell.
    worker.hold("detach");
    end.assignment.client = None;
    end.assign();
    worker.sees("detach").await;
    tokio::time::sleep(LONG).await;
    assert_eq!(end.link.progress().holds, Some(3));
    worker.release("detach");
    end.until("let go", |progress| progress.holds.is_none()).await;
    assert_eq!(end.link.progress().life, 0, "no life ended");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_refuses_keeps_its_seat_until_it_has_let_go() {
    let (_directory, path, worker) = start();
    let _server = worker.listen(&path);
    let mut end = End::new(&path, "vm0");
    worker.refuse("vectors");
    worker.hold("disconnected");
    end.assign();
    end.serves().await;
    let eventfd = Arc::new(EventFd::create().unwrap().into_fd());
    end.assignment.wanted.vectors = vec![Some(eventfd)];
    end.assignment.wanted.number += 1;
    end.assign();
    worker.sees("disconnected").await;
    tokio::time::sleep(LONG).await;
    let progress = end.link.progress();
    assert_eq!((progress.holds, progress.serving, progress.life), (Some(3), Some(3), 0));
    worker.release("disconnected");
    end.until("let go", |progress| progress.holds.is_none() && progress.life == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_region_counts_as_handed_and_is_taken_back() {
    let (_directory, path, worker) = start();
    let _server = worker.listen(&path);
    let mut end = End::new(&path, "vm0");
    worker.refuse("add 1");
    end.add_region(0);
    end.add_region(1);
    end.assign();
    end.serves().await;
    end.assignment.wanted.regions.remove(&RegionId(1));
    end.assignment.wanted.number += 1;
    end.assign();
    end.serves().await;
    assert!(worker.saw("remove 1"), "it may have mapped it");
    assert_eq!((worker.count("attach vm0"), worker.count("add 1")), (1, 1));
}

#[test]
fn a_slow_detach_holds_up_no_other_endpoint() {
    run(async {
        let (_directory, path, worker) = start();
        let _server = worker.listen(&path);
        let mut first = End::new(&path, "vm0");
        first.assign();
        first.serves().await;
        worker.hold("detach");
        first.assignment.client = None;
        first.assign();
        worker.sees("detach").await;
        let second = End::new(&path, "vm1");
        second.assign();
        second.serves().await;
        assert_eq!(first.link.progress().holds, Some(3));
        worker.release("detach");
        first.until("let go", |progress| progress.holds.is_none()).await;
    });
}

#[test]
fn a_successor_gets_nothing_before_its_predecessor_s_death_is_known() {
    run(async {
        let (_directory, path, worker) = start();
        let server = worker.listen(&path);
        let mut end = End::new(&path, "vm0");
        end.assign();
        end.serves().await;
        server.abort();
        end.until("dead", |progress| progress.life == 1).await;
        let successor = Arc::new(FakeWorker::default());
        let _server = successor.listen(&path);
        // Nobody looked: what is assigned was for the first life.
        end.assign();
        tokio::time::sleep(A_WHILE).await;
        assert!(!successor.saw("attach vm0"));
        assert_eq!(end.link.progress().holds, None);
        end.assignment.life = 1;
        end.assign();
        end.serves().await;
        assert!(successor.saw("attach vm0"));
    });
}

#[test]
fn a_link_that_goes_takes_its_connection_along() {
    run(async {
        let (_directory, path, worker) = start();
        let _server = worker.listen(&path);
        let end = End::new(&path, "vm0");
        end.assign();
        end.serves().await;
        drop(end);
        worker.sees("disconnected").await;
    });
}
