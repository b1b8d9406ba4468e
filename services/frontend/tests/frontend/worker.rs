//! A worker that keeps to the protocol and does what a test says: answers, refuses, or is slow.

use ipc::event::EventFd;
use ipc::layout::controller::ControllerLayout;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use service::control::{Answer, ConnectionId, Handler, Incoming, Server};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use vireo_proto::Failure;
use vireo_proto::handoff::{Done, reply, request};

use crate::support::BOUND;

/// The worker.
#[derive(Default)]
pub struct FakeWorker {
    /// What was asked, in order: "attach vm0", "add 0", "remove 0", "vectors", "detach", "disconnected".
    seen: watch::Sender<Vec<String>>,
    /// What is answered only once it is taken out of here.
    held: watch::Sender<BTreeSet<String>>,
    refused: Mutex<BTreeSet<String>>,
    attached: Mutex<Option<(Segment<ControllerLayout>, Segment<QueuesLayout>)>>,
}

impl FakeWorker {
    /// Serves at this path until aborted.
    pub fn listen(self: &Arc<Self>, path: &Path) -> AbortHandle {
        let server = Server::bind(path).unwrap();
        tokio::spawn(server.serve(Arc::clone(self))).abort_handle()
    }

    /// Leaves requests of this kind unanswered.
    pub fn hold(&self, what: &str) {
        self.held.send_if_modified(|held| held.insert(what.to_owned()));
    }

    /// Answers them.
    pub fn release(&self, what: &str) {
        self.held.send_if_modified(|held| held.remove(what));
    }

    /// Refuses requests of this kind.
    pub fn refuse(&self, what: &str) {
        self.refused.lock().unwrap().insert(what.to_owned());
    }

    /// Whether this was asked.
    pub fn saw(&self, what: &str) -> bool {
        self.count(what) > 0
    }

    /// How often this was asked.
    pub fn count(&self, what: &str) -> usize {
        self.seen.borrow().iter().filter(|seen| *seen == what).count()
    }

    /// Waits until this is asked.
    pub async fn sees(&self, what: &str) {
        let mut seen = self.seen.subscribe();
        let seen = seen.wait_for(|seen| seen.iter().any(|seen| seen == what));
        tokio::time::timeout(BOUND, seen).await.expect(what).unwrap();
    }

    /// The same in a thread without a runtime.
    pub fn sees_blocking(&self, what: &str) {
        let until = Instant::now() + BOUND;
        while !self.saw(what) {
            assert!(Instant::now() < until, "{what}: {:?}", self.seen.borrow());
            std::thread::yield_now();
        }
    }

    /// Acknowledges that nothing touches memory that was unmapped, and wakes the frontend by its own look.
    pub fn acknowledge_unmaps(&self) {
        let attached = self.attached.lock().unwrap();
        let (layout, queues) = attached.as_ref().expect("a controller is attached");
        let version = layout.signals.dma_version.load(Ordering::Acquire);
        queues.acknowledged.dma_version.store(version, Ordering::Release);
    }

    /// Acknowledges everything from now on, as a worker does that has nothing in flight.
    pub fn keep_acknowledging(self: &Arc<Self>) {
        let worker = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(worker) = worker.upgrade() {
                worker.acknowledge_all();
                drop(worker);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    /// Acknowledges everything so far.
    pub fn acknowledge_all(&self) {
        let attached = self.attached.lock().unwrap();
        let Some((layout, queues)) = attached.as_ref() else { return };
        let (signals, acknowledged) = (&layout.signals, &queues.acknowledged);
        let reset = signals.reset_generation.load(Ordering::Acquire);
        acknowledged.reset_generation.store(reset, Ordering::Release);
        let version = signals.version.load(Ordering::Acquire);
        acknowledged.version.store(version, Ordering::Release);
        let version = signals.dma_version.load(Ordering::Acquire);
        acknowledged.dma_version.store(version, Ordering::Release);
    }

    async fn turn(&self, what: &str) {
        self.seen.send_modify(|seen| seen.push(what.to_owned()));
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held.contains(what)).await.unwrap();
    }
}

impl Handler for FakeWorker {
    async fn handle(&self, mut request: Incoming) -> Result<Answer, Failure> {
        let what = match &request.body {
            request::Body::AttachController(attach) => format!("attach {}", attach.name),
            request::Body::DetachController(_) => "detach".to_owned(),
            request::Body::AddRegion(add) => format!("add {}", add.region_id),
            request::Body::RemoveRegion(remove) => format!("remove {}", remove.region_id),
            request::Body::SetVectors(_) => "vectors".to_owned(),
            _ => return Err(Failure::unsupported()),
        };
        self.turn(&what).await;
        if self.refused.lock().unwrap().contains(&what) {
            return Err(Failure::exhausted("no".to_owned()));
        }
        if !matches!(request.body, request::Body::AttachController(_)) {
            return Ok(Answer::done());
        }
        // Doorbell page, kick and limits are of no use here.
        let mut fds = std::mem::take(&mut request.fds).into_iter();
        let (layout, queues) = (fds.next().unwrap(), fds.next().unwrap());
        let layout = Segment::open_read_only(layout).unwrap();
        let queues = Segment::open(queues).unwrap();
        *self.attached.lock().unwrap() = Some((layout, queues));
        let kick = EventFd::create().unwrap();
        Ok(Answer::with_fds(reply::Body::Done(Done {}), vec![kick.into_fd()]))
    }

    async fn disconnected(&self, _connection: ConnectionId) {
        self.turn("disconnected").await;
    }
}
