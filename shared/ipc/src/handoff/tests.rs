use super::*;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

const SOON: Duration = Duration::from_millis(50);

/// Waits until a descriptor that was closed is closed everywhere: a process that another test is just starting has copies
/// of all until its program is executed.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn directory() -> PathBuf {
    let mut random = [0; 8];
    nix::unistd::read(std::fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    let path = std::env::temp_dir().join(format!("vireo-handoff-{:x}", u64::from_ne_bytes(random)));
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn bytes_and_descriptors_arrive_together_in_both_directions() {
    let (a, b) = Connection::pair().unwrap();
    let memory = memfd_create(c"one", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&memory, 12345).unwrap();
    a.try_send(b"ping", &[memory.as_fd(), a.as_fd()]).unwrap();
    let message = b.recv_deadline(SOON).unwrap();
    assert_eq!(message.bytes, b"ping");
    assert_eq!(message.fds.len(), 2);
    assert_eq!(fstat(&message.fds[0]).unwrap().st_size, 12345);
    b.try_send(b"pong", &[]).unwrap();
    assert_eq!(a.recv_deadline(SOON).unwrap().bytes, b"pong");
}

#[test]
fn packets_keep_their_borders_and_the_largest_fits() {
    let (a, b) = Connection::pair().unwrap();
    let large = vec![7; MAX_MESSAGE];
    a.try_send(b"x", &[]).unwrap();
    a.send_deadline(&large, &[], SOON).unwrap();
    assert_eq!(b.try_recv().unwrap().bytes, b"x");
    assert_eq!(b.try_recv().unwrap().bytes, large);
}

#[test]
fn oversized_and_empty_messages_are_refused_by_the_sender() {
    let (a, b) = Connection::pair().unwrap();
    for length in [0, MAX_MESSAGE + 1] {
        let error = a.try_send(&vec![0; length], &[]).unwrap_err();
        assert!(matches!(error, HandoffError::BadLength { length: found } if found == length));
    }
    let many = vec![a.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(a.try_send(b"x", &many), Err(HandoffError::TooManyDescriptors { .. })));
    assert!(matches!(b.try_recv(), Err(HandoffError::WouldBlock)));
    a.try_send(b"x", &many[..MAX_DESCRIPTORS]).unwrap();
    assert_eq!(b.try_recv().unwrap().fds.len(), MAX_DESCRIPTORS);
}

#[test]
fn an_oversized_message_is_consumed_and_the_next_one_arrives() {
    let (a, b) = Connection::pair().unwrap();
    packet::send(a.as_fd(), &vec![1; MAX_MESSAGE + 1], &[a.as_fd()]).unwrap();
    a.try_send(b"next", &[]).unwrap();
    assert!(
        matches!(b.try_recv(), Err(HandoffError::BadLength { length }) if length == MAX_MESSAGE + 1)
    );
    assert_eq!(b.try_recv().unwrap().bytes, b"next");
}

#[test]
fn a_peer_that_is_gone_is_told_from_one_that_is_silent() {
    let (a, b) = Connection::pair().unwrap();
    assert!(matches!(a.try_recv(), Err(HandoffError::WouldBlock)));
    assert!(matches!(a.recv_deadline(SOON), Err(HandoffError::TimedOut { .. })));
    b.try_send(b"last words", &[]).unwrap();
    drop(b);
    assert_eq!(a.try_recv().unwrap().bytes, b"last words");
    until("it is gone", || matches!(a.try_recv(), Err(HandoffError::Closed)));
    assert!(matches!(a.try_send(b"x", &[]), Err(HandoffError::Closed)));
}

#[test]
fn a_full_socket_makes_the_sender_wait_no_longer_than_its_bound() {
    let (a, b) = Connection::pair().unwrap();
    let mut sent = 0;
    while a.try_send(&[0; 65536], &[]).is_ok() {
        sent += 1;
        assert!(sent < 10_000, "a socket buffer has an end");
    }
    assert!(matches!(a.send_deadline(b"x", &[], SOON), Err(HandoffError::TimedOut { .. })));
    for _ in 0..sent {
        b.try_recv().unwrap();
    }
    a.send_deadline(b"x", &[], SOON).unwrap();
}

#[test]
fn a_listener_replaces_a_stale_socket_only() {
    let directory = directory();
    let path = directory.join("a.sock");
    let first = Listener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(HandoffError::InUse { .. })));
    let client = Connection::connect(&path).unwrap();
    // The refused second listener looked by connecting; it hung up at once.
    let peers: Vec<Peer> =
        std::iter::from_fn(|| first.accept().ok()).map(|c| c.peer().unwrap()).collect();
    assert!(peers.iter().all(|peer| peer.pid == std::process::id() as i32));
    assert_eq!(peers.len(), 2);
    drop(client);

    let mode = std::fs::metadata(&path).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    // As a killed process leaves it: the file stays, nobody listens.
    let abandoned = first.path().to_owned();
    let moved = directory.join("moved.sock");
    std::fs::rename(&abandoned, &moved).unwrap();
    drop(first);
    std::fs::rename(&moved, &abandoned).unwrap();
    let mut second = None;
    until("nobody listens", || {
        second = Listener::bind(&path).ok();
        second.is_some()
    });
    Connection::connect(&path).unwrap();
    drop(second);
    assert!(!path.exists());

    std::fs::write(&path, "not a socket").unwrap();
    assert!(Listener::bind(&path).is_err());
    assert!(path.exists(), "a file of somebody else's is not removed");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_path_that_does_not_fit_is_an_error() {
    let path = PathBuf::from(format!("/tmp/{}", "x".repeat(MAX_PATH)));
    assert!(matches!(Listener::bind(&path), Err(HandoffError::PathTooLong { .. })));
    assert!(matches!(Connection::connect(&path), Err(HandoffError::PathTooLong { .. })));
}

#[test]
fn a_socket_of_the_keepers_is_served_and_left_listening() {
    let directory = directory();
    let path = directory.join("kept.sock");
    // What the keeper holds.
    let keepers = Listener::bind(&path).unwrap();
    let pass = || keepers.as_fd().try_clone_to_owned().unwrap();
    let adopted = Listener::adopt(pass(), &path).unwrap();
    let client = Connection::connect(&path).unwrap();
    client.try_send(b"hello", &[]).unwrap();
    assert_eq!(adopted.accept().unwrap().recv_deadline(SOON).unwrap().bytes, b"hello");
    assert!(matches!(adopted.accept(), Err(HandoffError::WouldBlock)));
    drop(adopted);
    // Who connects while nobody serves waits for the successor.
    let waiting = Connection::connect(&path).unwrap();
    waiting.try_send(b"anybody?", &[]).unwrap();
    let successor = Listener::adopt(pass(), &path).unwrap();
    assert_eq!(successor.accept().unwrap().recv_deadline(SOON).unwrap().bytes, b"anybody?");
    // Another path, another kind of socket, one that does not listen.
    let elsewhere = Listener::adopt(pass(), &directory.join("other.sock"));
    assert!(matches!(elsewhere, Err(HandoffError::NotOurs { .. })));
    let stream = std::os::unix::net::UnixListener::bind(directory.join("stream.sock")).unwrap();
    let other = Listener::adopt(stream.into(), &directory.join("stream.sock"));
    assert!(matches!(other, Err(HandoffError::NotOurs { .. })));
    let (connection, _peer) = Connection::pair().unwrap();
    let mute = Listener::adopt(connection.as_fd().try_clone_to_owned().unwrap(), &path);
    assert!(matches!(mute, Err(HandoffError::NotOurs { .. })));
    drop(keepers);
    std::fs::remove_dir_all(directory).unwrap();
}
