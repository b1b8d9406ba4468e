use super::*;
use crate::control::tests::{PATIENCE, attach, control};
use service::control::{ConnectionId, Handler, Incoming, Server};
use std::sync::atomic::AtomicUsize;
use tokio::sync::Semaphore;

const ID: u128 = 7;
const WANTED: Wanted = Wanted { id: ID, row: 0, generation: 0, force_ring: false };
/// What a question waits before it looks again.
const SHORT: Duration = Duration::from_millis(20);

/// A backend that grants a channel when it is let.
struct Backend {
    grants: Semaphore,
    closed: AtomicUsize,
}

impl Handler for Backend {
    async fn handle(&self, incoming: Incoming) -> Result<Answer, Failure> {
        match incoming.body {
            request::Body::OpenChannel(_) => {
                self.grants.acquire().await.unwrap().forget();
                let kind = ChannelKind::LeaseNull.into();
                let grant = ChannelGrant { kind, channel_id: 5, ..ChannelGrant::default() };
                Ok(Answer::new(reply::Body::ChannelGrant(grant)))
            }
            request::Body::CloseChannel(close) => {
                assert_eq!(close.channel_id, 5);
                self.closed.fetch_add(1, Ordering::Relaxed);
                Ok(Answer::done())
            }
            _ => Err(Failure::unsupported()),
        }
    }

    async fn disconnected(&self, _connection: ConnectionId) {}
}

fn backend(directory: &tempfile::TempDir) -> (Arc<Backend>, Session) {
    let backend = Arc::new(Backend { grants: Semaphore::new(0), closed: AtomicUsize::new(0) });
    let socket = directory.path().join("backend.sock");
    tokio::spawn(Server::bind(&socket).unwrap().serve(Arc::clone(&backend)));
    (backend, Session::connect(&socket, "worker-test").unwrap())
}

async fn until_closed(backend: &Backend) {
    let closed = async {
        while backend.closed.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the channel stays open for ever");
}

#[tokio::test]
async fn a_late_channel_is_taken_while_its_namespace_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _reactor) = control();
    let layout = attach(&control, ID);
    layout.namespaces[0].state.store(1, Ordering::Release);
    let (backend, session) = backend(&directory);
    let late = async {
        tokio::time::sleep(5 * SHORT).await;
        backend.grants.add_permits(1);
    };
    let (answer, ()) = tokio::join!(ask(&control, &WANTED, "m", &session, SHORT), late);
    let (grant, _, unclaimed) = answer.unwrap();
    assert_eq!(grant.channel_id, 5);
    assert_eq!(backend.closed.load(Ordering::Relaxed), 0);
    drop(unclaimed);
    until_closed(&backend).await;
}

#[tokio::test]
async fn a_late_channel_of_a_namespace_that_is_gone_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _reactor) = control();
    attach(&control, ID);
    let (backend, session) = backend(&directory);
    let error = ask(&control, &WANTED, "m", &session, SHORT).await.map(drop).unwrap_err();
    assert_eq!(error.code(), vireo_proto::ErrorCode::NotFound);
    backend.grants.add_permits(1);
    until_closed(&backend).await;
}

#[tokio::test]
async fn a_late_channel_of_an_opener_that_was_ended_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _reactor) = control();
    let layout = attach(&control, ID);
    layout.namespaces[0].state.store(1, Ordering::Release);
    let (backend, session) = backend(&directory);
    let asking = ask(&control, &WANTED, "m", &session, PATIENCE);
    assert!(tokio::time::timeout(SHORT, asking).await.is_err());
    backend.grants.add_permits(1);
    until_closed(&backend).await;
}

/// Memory is used again: a channel's address may be that of one that was opened after it.
#[tokio::test]
async fn what_was_a_channel_says_nothing_of_another_at_its_address() {
    const ADDRESS: usize = 0x1000;
    let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (control, _reactor) = control();
    attach(&control, ID);
    let [(_, before), (_, present)] = directories.each_ref().map(backend);
    let opened = Opened { session: present, channel_id: 5 };
    control.controllers().get_mut(&ID).unwrap().channels.insert(ADDRESS, opened);
    let segment = bdev::ring::create_segment("channel", ID, 16).unwrap();
    let shared = Segment::open(segment.fd().try_clone_to_owned().unwrap()).unwrap();
    let kick = || EventFd::create().unwrap();
    let geometry = Geometry { size: 1 << 20, read_only: false };
    let ring = RingChannel::new(shared, kick(), geometry).unwrap();
    let lease = Lease::Awaited(ring.watch().unwrap());
    // What the earlier one waits for has come.
    bdev::ring::server::RingServer::new(segment, kick()).unwrap().supersede();
    let open = Open { session: before, channel: ADDRESS, number: 5, lease };
    let watched = watch(Arc::clone(&control), WANTED, open, ("b0".to_owned(), "m".to_owned()));
    // Nobody polls: whoever told the poll thread something would wait for ever.
    tokio::time::timeout(PATIENCE, watched).await.expect("the present channel is left alone");
}
