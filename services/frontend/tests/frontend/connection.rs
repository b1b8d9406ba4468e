//! A connection whose client is slow, silent or hostile.

use crate::support::{BOUND, Guest, memory, run, with_endpoint};
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vfio_user::client::Client;
use vfio_user::server::Reply;
use vfio_user::{Command, Header};
use vireo_frontend::closer::Closer;
use vireo_frontend::connection::{Connection, ConnectionError, Incoming, REPLY_TIME};
use vireo_proto::handoff::DoorbellMode;

/// Long enough for a message that is there to be taken.
const A_WHILE: Duration = Duration::from_millis(50);
/// How long the close of a hostile client's descriptor takes.
const LINGER: Duration = Duration::from_secs(60);

fn connection() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let segment = Arc::new(Segment::<ControllerLayout>::create("controller", 1).unwrap());
    (Connection::new(ours.into(), segment, Closer::default()).unwrap(), theirs)
}

/// A command whose payload says where it is.
fn message(id: u16, payload: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..payload).map(|at| (at / 7) as u8).collect();
    Header::command(id, Command(77), payload).with_body(&body)
}

/// What comes within a short while.
async fn receive(connection: &mut Connection) -> Option<Incoming> {
    let received = tokio::time::timeout(A_WHILE, connection.receive()).await;
    received.ok().map(|received| received.unwrap().expect("the client is there"))
}

#[test]
fn a_message_in_pieces_survives_that_its_reception_is_broken_off() {
    run(async {
        // Peeked whole, and taken piece by piece.
        for payload in [1000, 120_000, 900_000] {
            let (mut connection, theirs) = connection();
            let bytes = message(3, payload);
            let fd = memory(4096);
            // The descriptor comes with the first byte, the rest in pieces.
            let mut sender = Client::new(theirs);
            sender.send_raw(&bytes[..1], &[fd.as_fd()]).unwrap();
            assert!(receive(&mut connection).await.is_none());
            for part in bytes[1..bytes.len() - 1].chunks(50_000) {
                sender.send_raw(part, &[]).unwrap();
                assert!(receive(&mut connection).await.is_none());
            }
            sender.send_raw(&bytes[bytes.len() - 1..], &[]).unwrap();
            let incoming = arrives(&mut connection).await;
            assert_eq!(incoming.header.id, 3);
            assert!(incoming.body == bytes[16..], "{payload} bytes");
            assert_eq!(incoming.fds.len(), 1);
            connection.answer(None).unwrap();
            sender.send_raw(&message(4, 0), &[]).unwrap();
            assert_eq!(arrives(&mut connection).await.header.id, 4);
        }
    });
}

/// The message that is sure to come.
async fn arrives(connection: &mut Connection) -> Incoming {
    let received = tokio::time::timeout(BOUND, connection.receive()).await;
    received.expect("the message is complete").unwrap().expect("the client is there")
}

/// A connection whose client does not read, with a reply under way.
async fn stalled() -> (Connection, UnixStream, usize) {
    let (mut connection, mut theirs) = connection();
    let mut sent = 0;
    loop {
        theirs.write_all(&message(1, 0)).unwrap();
        let Some(incoming) = receive(&mut connection).await else {
            return (connection, theirs, sent);
        };
        let body = vec![0x5A; 100_000];
        let bytes = incoming.header.reply(body.len()).with_body(&body);
        sent += bytes.len();
        connection.answer(Some(Reply { bytes, fds: Vec::new() })).unwrap();
    }
}

#[test]
fn a_reply_that_waits_for_room_arrives_whole() {
    run(async {
        let (mut connection, mut theirs, sent) = stalled().await;
        theirs.set_nonblocking(true).unwrap();
        let mut read = 0;
        let mut buffer = [0; 8192];
        while read < sent {
            match theirs.read(&mut buffer) {
                Ok(count) => read += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Broken off again and again.
                    tokio::time::timeout(Duration::from_millis(1), connection.receive()).await.ok();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(read, sent);
    });
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_given_up() {
    let (mut connection, _theirs, _) = stalled().await;
    let begun = tokio::time::Instant::now();
    let given_up = tokio::time::timeout(10 * REPLY_TIME, connection.receive()).await;
    assert!(matches!(given_up, Ok(Err(ConnectionError::Unread { .. }))), "in no time");
    assert!(begun.elapsed() <= REPLY_TIME);
}

/// A socket whose close takes [`LINGER`] once nobody else has it: its peer takes nothing.
fn lingering() -> (TcpListener, TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 1 << 16]).is_ok() {}
    let linger = libc_linger(LINGER);
    setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    (listener, peer, stream.into())
}

fn libc_linger(time: Duration) -> nix::libc::linger {
    nix::libc::linger { l_onoff: 1, l_linger: time.as_secs() as i32 }
}

#[test]
fn descriptors_whose_close_takes_long_hold_up_nobody() {
    with_endpoint(DoorbellMode::Shadow, |socket| {
        let mut guest = Guest::attach(socket);
        let map = vfio_user::message::DmaMapBody {
            argsz: 32,
            flags: crate::support::read_write(),
            offset: 0,
            address: 1 << 40,
            size: 4096,
        };
        let body = zerocopy::IntoBytes::as_bytes(&map);
        let stray = Header::command(1, Command::DEVICE_GET_INFO, 16).with_body(&[16; 16]);
        let wrong = Header::command(2, Command::DMA_MAP, 32).with_body(body);
        let begun = Instant::now();
        let mut peers = Vec::new();
        // With a command that has no use for it, and with one that could have.
        for message in [stray, wrong] {
            let (listener, peer, hostile) = lingering();
            let (head, last) = message.split_at(message.len() - 1);
            guest.client.send_raw(head, &[hostile.as_fd()]).unwrap();
            // The message in the socket still holds it: whoever drops that last waits.
            drop(hostile);
            guest.client.send_raw(last, &[]).unwrap();
            peers.push((listener, peer));
        }
        guest.client.receive_raw().unwrap();
        assert!(guest.client.receive_raw().unwrap().header.flags.error(), "it is no memory");
        guest.enable();
        assert!(begun.elapsed() < LINGER / 2, "the frontend waited {:?}", begun.elapsed());
    });
}
