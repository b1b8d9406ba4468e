//! What is told of the requests of workers that are gone.

use crate::rig::{Running, add_region, apply, guest, open, start};
use bdev::channel::{Channel, Submitted};
use bdev::request::{Op, Request};
use ipc::guest_memory::RegionTable;
use service::control::{ControlError, Session};
use std::time::{Duration, Instant};
use vireo_backend::serve::Command;
use vireo_proto::handoff::{AwaitDrained, Bdev, NullDriver, bdev as pb, request};
use vireo_proto::{ErrorCode, id_to_bytes};

/// How long a request of the slow device takes.
const LATENCY: Duration = Duration::from_millis(400);

fn slow() -> Bdev {
    let latency_ns = LATENCY.as_nanos() as u64;
    Bdev {
        name: "slow0".into(),
        size_bytes: 1 << 20,
        block_size: 512,
        driver: Some(pb::Driver::Null(NullDriver { latency_ns })),
        ..Bdev::default()
    }
}

async fn drained(session: &Session, worker: &str, controller: u128) -> Result<(), ControlError> {
    let asked = AwaitDrained {
        controller_id: id_to_bytes(controller),
        worker: worker.into(),
        bdevs: vec!["slow0".into()],
    };
    session.tell(request::Body::AwaitDrained(asked), &[]).await.map(drop)
}

async fn pings(running: &Running, count: usize) {
    for _ in 0..count {
        running.serve.ask(|done| Command::Ping { done }).await.unwrap();
    }
}

#[tokio::test]
async fn requests_of_a_worker_that_is_gone_are_waited_for() {
    let running = start();
    let (worker, frontend) = (running.connect(), running.connect());
    let unknown = drained(&frontend, "worker-test", crate::rig::CONTROLLER).await.unwrap_err();
    assert_eq!(unknown.code(), Some(ErrorCode::Unavailable), "no devices yet: {unknown}");
    assert_eq!(apply(&frontend, vec![slow()]).await.failures, []);
    drained(&frontend, "worker-test", crate::rig::CONTROLLER).await.unwrap();
    add_region(&worker, &guest()).await;
    let (mut channel, _) = open(&worker, "slow0", true).await.unwrap();
    let begun = Instant::now();
    let flush = Request::new(Op::Flush, 0, 0, &[], 1);
    assert_eq!(channel.submit(&flush, &RegionTable::new(), 0), Submitted::Pending);
    channel.publish();
    // Two turns later the device has it.
    pings(&running, 2).await;
    drop((worker, channel));
    // Others are none of its business.
    for (name, controller) in
        [("worker-other", crate::rig::CONTROLLER), ("worker-test", 9), ("", 9)]
    {
        drained(&frontend, name, controller).await.unwrap();
    }
    drained(&frontend, "worker-test", crate::rig::CONTROLLER).await.unwrap();
    assert!(begun.elapsed() >= LATENCY * 3 / 4, "told before the device had ended it");
}
