use super::*;
use crate::clock::Monotonic;
use crate::notify::EventNotifier;
use crate::reactor::Reactor;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long anything may take before a test gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A control thread's state, and its reactor, which nobody polls.
pub(super) fn control() -> (Arc<Control>, Reactor<Monotonic, EventNotifier>) {
    let (reactor, end) = Reactor::new(Monotonic::default(), EventNotifier);
    let (name, runtime_dir) = ("w0".to_owned(), PathBuf::from("/nonexistent"));
    let kick = EventFd::create().unwrap();
    (Control::new(ControlConfig { name, runtime_dir, end, kick, faults: false }).unwrap(), reactor)
}

/// Attaches a controller to the control thread alone; its segment.
pub(super) fn attach(control: &Control, id: u128) -> Arc<Segment<ControllerLayout>> {
    let layout = Arc::new(Segment::create("test", id).unwrap());
    let attached = Attached::new(ConnectionId(1), "vm0".to_owned(), Arc::clone(&layout));
    control.controllers().insert(id, attached);
    layout
}

#[tokio::test]
async fn a_poll_thread_is_alive_while_it_turns() {
    let (control, mut reactor) = control();
    let wake = EventFd::create().unwrap();
    reactor.wake_by(wake.try_clone().unwrap());
    tokio::spawn(Arc::clone(&control).pump(service::async_fd::register(wake).unwrap()));
    assert!(!control.is_alive(Duration::from_millis(50)).await, "nobody polls");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            reactor.poll();
            std::thread::yield_now();
        }
        reactor
    });
    assert!(control.is_alive(PATIENCE).await);
    assert!(control.is_alive(PATIENCE).await);
    stop.store(true, Ordering::Relaxed);
    let _reactor = thread.join().unwrap();
    // What it answered before it stopped was taken in already, or belongs to no question.
    assert!(!control.is_alive(Duration::from_millis(50)).await, "it turns no more");
}

/// At the end of the process, when requests are still being handled.
#[tokio::test]
async fn nothing_waits_for_a_poll_thread_that_has_ended() {
    let (control, reactor) = control();
    attach(&control, 7);
    drop(reactor);
    let ends = async {
        let error = control.change(7, Change::RemoveRegion(RegionId(1))).await.unwrap_err();
        assert_eq!(error.code(), vireo_proto::ErrorCode::Unavailable);
        control.detach(7, ConnectionId(1)).await;
        assert!(control.controllers().is_empty());
    };
    // On a thread of its own, so that a loop without an end is seen, too.
    tokio::time::timeout(PATIENCE, ends).await.unwrap();
}
