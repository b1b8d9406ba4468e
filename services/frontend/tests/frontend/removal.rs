//! Endpoints that go while their clients are there.

use crate::support::{BOUND, Guest, PATIENCE, Target, client, run};
use crate::worker::FakeWorker;
use std::sync::Arc;
use std::time::Instant;
use vireo_proto::handoff::{ApplyTargets, DoorbellMode};

fn without_endpoints(targets: ApplyTargets) -> ApplyTargets {
    ApplyTargets { endpoints: Vec::new(), ..targets }
}

#[test]
fn an_endpoint_that_cannot_end_holds_up_neither_reload_nor_status_nor_its_successor() {
    run(async {
        let target = Target::start();
        let worker = Arc::new(FakeWorker::default());
        let _server = target.start_worker(&worker);
        worker.keep_acknowledging();
        worker.hold("detach");
        let wanted = target.targets(DoorbellMode::Mapped);
        assert_eq!(target.apply(wanted.clone()).await, []);
        let socket = target.socket();
        let guest = client({
            let (socket, worker) = (socket.clone(), Arc::clone(&worker));
            move || {
                let guest = Guest::attach(&socket);
                worker.sees_blocking("add 0");
                guest
            }
        })
        .await;

        let begun = Instant::now();
        let apply = target.apply(without_endpoints(wanted.clone()));
        let look = async {
            worker.sees("detach").await;
            let status = target.status().await;
            let endpoint = status.items.iter().find(|item| item.kind == "endpoint").unwrap();
            assert_eq!(endpoint.state, "ending");
            assert!(begun.elapsed() < PATIENCE, "status waited for the end of an endpoint");
        };
        let (failures, ()) = tokio::join!(apply, look);
        assert!(begun.elapsed() < BOUND);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].object == "endpoint vm0" && failures[0].message.contains("in flight"));
        assert!(!socket.exists());

        // One of the same name and place begins while that one still ends, and keeps its socket afterwards.
        let failures = target.apply(wanted.clone()).await;
        assert_eq!(failures.len(), 1, "{failures:?}");
        worker.release("detach");
        assert_eq!(target.apply(wanted.clone()).await, []);
        let next = client({
            let socket = socket.clone();
            move || Guest::attach(&socket)
        })
        .await;
        drop((guest, next));
        assert_eq!(target.apply(without_endpoints(wanted)).await, []);
        target.stop().await;
    });
}
