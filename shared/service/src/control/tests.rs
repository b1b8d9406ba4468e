use super::*;
use ipc::event::EventFd;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use vireo_proto::handoff::{DescribeBdev, GetStatus, ProcessStatus, Reload, request};

const SHORT: Duration = Duration::from_millis(100);
/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.expect(what);
}

#[derive(Default)]
struct Fake {
    gone: Mutex<Vec<ConnectionId>>,
    pid: i32,
}

impl Handler for Fake {
    async fn handle(&self, mut request: Incoming) -> Result<Answer, Failure> {
        match &request.body {
            request::Body::GetStatus(_) => {
                let message = telemetry::spans::traceparent();
                let status = ProcessStatus { pid: self.pid, message, ..Default::default() };
                Ok(Answer::new(reply::Body::ProcessStatus(status)))
            }
            request::Body::DescribeBdev(_) => {
                let [fd] = request.take_fds()?;
                EventFd::from_client(fd).unwrap().signal().unwrap();
                let own = EventFd::create().unwrap();
                own.signal().unwrap();
                let body = reply::Body::Done(vireo_proto::handoff::Done {});
                Ok(Answer::with_fds(body, vec![own.into_fd()]))
            }
            request::Body::Reload(_) => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(Answer::done())
            }
            _ => Err(Failure::unsupported()),
        }
    }

    async fn disconnected(&self, connection: ConnectionId) {
        self.gone.lock().unwrap().push(connection);
    }
}

fn start(path: &std::path::Path, pid: i32) -> (Arc<Fake>, tokio::task::JoinHandle<()>) {
    let fake = Arc::new(Fake { pid, ..Fake::default() });
    let server = Server::bind(path).unwrap();
    (Arc::clone(&fake), tokio::spawn(server.serve(fake)))
}

fn socket(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("fake.sock")
}

fn describe() -> request::Body {
    request::Body::DescribeBdev(DescribeBdev { bdev: "m".into() })
}

fn status() -> request::Body {
    request::Body::GetStatus(GetStatus {})
}

async fn pid(client: &Client) -> i32 {
    match client.call(status(), &[]).await.unwrap().body {
        reply::Body::ProcessStatus(status) => status.pid,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn descriptors_go_both_ways_and_failures_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let (_fake, _server) = start(&socket(&directory), 1);
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    let event = EventFd::create().unwrap();
    let fds = session.tell(describe(), &[event.as_fd()]).await.unwrap();
    assert_eq!(event.drain().unwrap(), 1);
    let [fd] = fds.try_into().unwrap();
    assert_eq!(EventFd::from_client(fd).unwrap().drain().unwrap(), 1);

    let error = session.call(describe(), &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidArgument));
    assert_eq!(error.line(), "refused: 0 descriptors, expected 1");
    let other = request::Body::CloseChannel(vireo_proto::handoff::CloseChannel::default());
    let error = session.call(other, &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unsupported));
}

#[tokio::test]
async fn a_request_carries_the_trace_of_the_one_in_hand() {
    let directory = tempfile::tempdir().unwrap();
    let (_fake, _server) = start(&socket(&directory), 1);
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned();
    let answer =
        telemetry::spans::within(trace.parse().ok(), session.call(status(), &[])).await.unwrap();
    let reply::Body::ProcessStatus(status) = answer.body else { panic!("{answer:?}") };
    assert_eq!(status.message, trace);
}

#[tokio::test]
async fn a_silent_peer_costs_no_more_than_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let (_fake, _server) = start(&socket(&directory), 1);
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    let hang = request::Body::Reload(Reload {});
    let error = session.call_within(SHORT, hang, &[]).await.unwrap_err();
    assert!(matches!(error, ControlError::TimedOut { .. }), "{error}");
    // The same connection's next request stands behind the one that hangs; another connection's does not.
    let other = Session::connect(&socket(&directory), "test-u").unwrap();
    other.call(status(), &[]).await.unwrap();
}

#[tokio::test]
async fn calls_in_flight_fail_when_the_peer_dies_and_the_client_finds_its_successor() {
    let directory = tempfile::tempdir().unwrap();
    let path = socket(&directory);
    let client = Client::new(&path, "test-t");
    assert!(client.session(SHORT).await.is_err(), "nobody there yet");
    let (fake, server) = start(&path, 1);
    assert_eq!(pid(&client).await, 1);
    let old = client.current().unwrap();
    let hang = old.call(request::Body::Reload(Reload {}), &[]);
    let kill = async {
        tokio::time::sleep(SHORT).await;
        server.abort();
    };
    let (result, ()) = tokio::join!(hang, kill);
    assert!(matches!(result, Err(ControlError::Closed { .. })), "{result:?}");
    assert!(old.is_closed());
    let (_fake, _server) = start(&path, 2);
    assert_eq!(pid(&client).await, 2);
    assert!(matches!(old.call(status(), &[]).await, Err(ControlError::Closed { .. })));
    drop(fake);
}

#[tokio::test]
async fn the_server_tells_its_handler_once_that_a_peer_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (fake, _server) = start(&socket(&directory), 1);
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    session.call(status(), &[]).await.unwrap();
    assert!(fake.gone.lock().unwrap().is_empty());
    drop(session);
    until("it is told", || !fake.gone.lock().unwrap().is_empty()).await;
    tokio::time::sleep(SHORT).await;
    assert_eq!(fake.gone.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let directory = tempfile::tempdir().unwrap();
    let (_fake, _server) = start(&socket(&directory), 1);
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    let bad = ipc::handoff::Connection::connect(socket(&directory)).unwrap();
    bad.try_send(&[0xFF; 100], &[]).unwrap();
    session.call(status(), &[]).await.unwrap();
    until("it is closed", || matches!(bad.try_recv(), Err(HandoffError::Closed))).await;
    session.call(status(), &[]).await.unwrap();
}

/// Lets go of what came over a connection when it is told to.
#[derive(Default)]
struct Slow {
    may: tokio::sync::Notify,
}

impl Handler for Slow {
    async fn handle(&self, _request: Incoming) -> Result<Answer, Failure> {
        Ok(Answer::done())
    }

    async fn disconnected(&self, _connection: ConnectionId) {
        self.may.notified().await;
    }
}

#[tokio::test]
async fn a_peer_is_gone_when_its_handler_has_let_go_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let server = Server::bind(&socket(&directory)).unwrap();
    tokio::spawn(server.serve(Arc::clone(&slow)));
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    session.call(status(), &[]).await.unwrap();
    session.hang_up();
    assert!(tokio::time::timeout(SHORT, session.gone()).await.is_err(), "it has not let go");
    assert!(session.call(status(), &[]).await.is_err(), "a call after the end");
    slow.may.notify_one();
    tokio::time::timeout(PATIENCE, session.gone()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_cannot_be_followed_is_closed_long_before_it_is_gone() {
    let (ours, theirs) = ipc::handoff::Connection::pair().unwrap();
    let session = Session::new(ours, "pair".to_owned(), "test-t").unwrap();
    theirs.try_send(&[0xFF; 100], &[]).unwrap();
    tokio::time::timeout(PATIENCE, session.closed()).await.unwrap();
    assert!(tokio::time::timeout(SHORT, session.gone()).await.is_err(), "its process is there");
    // It learns that nothing more comes.
    assert!(matches!(theirs.try_recv(), Err(HandoffError::Closed)));
    drop(theirs);
    tokio::time::timeout(PATIENCE, session.gone()).await.unwrap();
}

#[tokio::test]
async fn a_socket_of_the_keepers_is_served_where_it_is_the_right_one() {
    let directory = tempfile::tempdir().unwrap();
    let keepers = ipc::handoff::Listener::bind(socket(&directory)).unwrap();
    let pass = |name: &str| vec![(name.to_owned(), keepers.as_fd().try_clone_to_owned().unwrap())];
    // Asked before anybody serves: answered all the same.
    let session = Session::connect(&socket(&directory), "test-t").unwrap();
    let server = Server::adopt_or_bind(&socket(&directory), pass(CONTROL)).unwrap();
    tokio::spawn(server.serve(Arc::new(Slow::default())));
    session.call(status(), &[]).await.unwrap();
    // Another name, or another path: not used.
    let other = directory.path().join("other.sock");
    let server = Server::adopt_or_bind(&other, pass(CONTROL)).unwrap();
    assert!(server.path() == other && other.exists());
    let taken = Server::adopt_or_bind(&socket(&directory), pass("api"));
    assert!(matches!(taken, Err(HandoffError::InUse { .. })));
}
