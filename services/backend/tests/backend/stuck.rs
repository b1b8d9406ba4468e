//! A loop or a device that does not answer costs those who use it, and nobody else.

use crate::rig::{
    DEVICE, add_region, apply, channels, close, guest, open, open_for, remove_region, start,
    start_stuck, write_and_read_back,
};
use bdev::channel::{AnyChannel, Channel, Submitted};
use bdev::request::{Op, Request};
use ipc::guest_memory::RegionTable;
use std::time::{Duration, Instant};
use vireo_backend::serve::Command;
use vireo_proto::ErrorCode;
use vireo_proto::handoff::{Bdev, ChannelKind, NullDriver, bdev as pb};

/// Well below what the backend itself waits for.
const SOON: Duration = Duration::from_secs(1);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("waits for the stuck one")
}

#[tokio::test]
async fn a_stuck_loop_does_not_block_other_opens() {
    let (running, serve) = start_stuck();
    let (manager, first, second) = (running.connect(), running.connect(), running.connect());
    // Making a device only tells the loop.
    assert_eq!(soon(apply(&manager, running.bdevs(DEVICE))).await.failures, []);
    let stuck = async {
        let start = Instant::now();
        let error = open(&first, "mem0", false).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Unavailable), "{error}");
        assert!(start.elapsed() > SOON, "it was not waiting: this proves nothing");
    };
    let others = async {
        let (_, grant) = soon(open(&second, "null0", false)).await.unwrap();
        assert_eq!(grant.kind(), ChannelKind::LeaseNull);
        assert_eq!(soon(channels(&manager)).await, 1);
        soon(close(&second, &grant)).await.unwrap();
    };
    tokio::join!(stuck, others);
    assert!(!running.serve.is_alive(Duration::from_millis(10)).await);
    // What was given up is given back, by the loop too once it turns.
    std::thread::spawn(move || serve.run());
    assert!(running.serve.is_alive(Duration::from_secs(60)).await);
    let guest = guest();
    add_region(&first, &guest).await;
    let (mut channel, grant) = open(&first, "mem0", false).await.unwrap();
    assert_eq!((grant.lease_number, channels(&manager).await), (0, 1));
    write_and_read_back(&mut channel, &guest, 9).await;
    running.serve.send(Command::Stop).await.unwrap();
}

/// A null device that ends nothing.
fn endless(name: &str) -> Bdev {
    Bdev {
        name: name.into(),
        size_bytes: DEVICE,
        block_size: 512,
        driver: Some(pb::Driver::Null(NullDriver { latency_ns: u64::MAX })),
        ..Bdev::default()
    }
}

async fn occupy(channel: &mut AnyChannel, running: &crate::rig::Running) {
    let flush = Request::new(Op::Flush, 0, 0, &[], 1);
    assert_eq!(channel.submit(&flush, &RegionTable::new(), 0), Submitted::Pending);
    channel.publish();
    // Two turns later the device has it.
    for _ in 0..2 {
        running.serve.ask(|done| Command::Ping { done }).await.unwrap();
    }
}

#[tokio::test]
async fn a_stuck_device_holds_up_its_own_controller_only() {
    let running = start();
    let (manager, session) = (running.connect(), running.connect());
    let mut bdevs = running.bdevs(DEVICE);
    bdevs.push(endless("slow0"));
    assert_eq!(apply(&manager, bdevs).await.failures, []);
    let (mut channel, grant) = open(&session, "slow0", true).await.unwrap();
    occupy(&mut channel, &running).await;
    let error = close(&session, &grant).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unavailable), "{error}");
    assert_eq!(close(&session, &grant).await.unwrap_err().code(), Some(ErrorCode::NotFound));
    // Nothing of the earlier channel may land after a later one's.
    let error = open(&session, "mem0", true).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unavailable), "{error}");
    let (_, other) = soon(open_for(7, &session, "mem0", true)).await.unwrap();
    soon(close(&session, &other)).await.unwrap();
    assert_eq!(channels(&manager).await, 0);
}

#[tokio::test]
async fn a_device_that_does_not_end_is_told_of_and_the_rest_is_done() {
    let running = start();
    let session = running.connect();
    assert_eq!(apply(&session, vec![endless("slow0")]).await.failures, []);
    let (mut channel, _) = open(&session, "slow0", true).await.unwrap();
    occupy(&mut channel, &running).await;
    let patient = Duration::from_secs(60);
    let bdevs = vireo_proto::handoff::ApplyBdevs { bdevs: running.bdevs(DEVICE) };
    let body = vireo_proto::handoff::request::Body::ApplyBdevs(bdevs);
    let other = running.connect();
    let applied = async {
        let answer = session.call_within(patient, body, &[]).await.unwrap();
        let vireo_proto::handoff::reply::Body::ApplyResult(result) = answer.body else {
            panic!("{:?}", answer.body)
        };
        result
    };
    let meanwhile = async {
        // Its removal is looked at until it is there; nobody waits for it.
        let start = Instant::now();
        while open(&other, "slow0", true).await.is_ok() {
            assert!(start.elapsed() < patient, "never removed");
        }
        soon(channels(&other)).await
    };
    let (result, _) = tokio::join!(applied, meanwhile);
    let told: Vec<_> = result.failures.iter().map(|f| (&*f.object, &*f.message)).collect();
    assert_eq!(told, [("bdev slow0", "removed, but some of its requests have not ended")]);
    assert!(open(&other, "mem0", false).await.is_ok());
}

/// Another device of the same name came meanwhile: the numbers of its leases are not touched.
#[tokio::test]
async fn a_lease_of_a_device_that_is_gone_is_not_given_back_to_its_successor() {
    let running = start();
    let (old, new) = (running.connect(), running.connect());
    apply(&old, running.bdevs(DEVICE)).await;
    let (_, before) = open(&old, "mem0", false).await.unwrap();
    apply(&old, Vec::new()).await;
    apply(&old, running.bdevs(DEVICE)).await;
    let (_, held) = open(&new, "mem0", false).await.unwrap();
    assert_eq!((before.lease_number, held.lease_number), (0, 0));
    close(&old, &before).await.unwrap();
    let (_, next) = open(&new, "mem0", false).await.unwrap();
    assert_eq!(next.lease_number, 1, "number 0 has its holder still");
    drop(old);
    remove_region(&new).await;
}
