//! The steps of a message, and the ways one can arrive. (A server that is killed: `tests/journal_kill.rs`.)

use super::{Journal, JournalError, MAX_MESSAGE, Recovered, Step};
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn pair() -> (UnixStream, OwnedFd) {
    let (client, server) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (client.into(), server)
}

fn segment() -> Arc<Segment<ControllerLayout>> {
    Arc::new(Segment::create("journal test", 1).unwrap())
}

fn memfd() -> OwnedFd {
    memfd_create(c"passed", MFdFlags::MFD_CLOEXEC).unwrap()
}

fn send(client: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let fds: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    let vector = [IoSlice::new(bytes)];
    let flags = MsgFlags::empty();
    let sent = sendmsg::<()>(client.as_raw_fd(), &vector, control, flags, None).unwrap();
    assert_eq!(sent, bytes.len());
}

/// Waits until a descriptor that was closed is closed everywhere: a process that another test is just starting has copies
/// of all until its program is executed.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn message_goes_through_its_steps_once() {
    let ((mut client, server), fd) = (pair(), memfd());
    let mut journal = Journal::new(segment());
    let would_block = |result| assert!(matches!(result, Err(JournalError::WouldBlock)));
    would_block(journal.peek_header(server.as_fd()).map(drop));
    send(&client, b"0123456789", &[]);
    would_block(journal.peek_header(server.as_fd()).map(drop));
    send(&client, b"abcdefXY", &[]);
    send(&client, b"next message....", &[]);
    assert_eq!(&journal.peek_header(server.as_fd()).unwrap().bytes, b"0123456789abcdef");
    let mut message = [0; 18];
    journal.peek_message(server.as_fd(), &mut message).unwrap();
    assert_eq!(&message, b"0123456789abcdefXY");
    assert_eq!(journal.recover(server.as_fd()).unwrap(), Recovered::Act { size: 18 });
    journal.reply(server.as_fd(), b"reply", &[fd.as_fd()]).unwrap();
    journal.reply(server.as_fd(), b"reply", &[fd.as_fd()]).unwrap();
    assert_eq!(journal.recover(server.as_fd()).unwrap(), Recovered::Consume { size: 18 });
    journal.consume(server.as_fd()).unwrap();
    assert!(matches!(journal.consume(server.as_fd()), Err(JournalError::OutOfStep { .. })));
    assert!(matches!(
        journal.reply(server.as_fd(), b"x", &[]),
        Err(JournalError::OutOfStep { .. })
    ));
    assert_eq!(journal.recover(server.as_fd()).unwrap(), Recovered::Idle);
    // A message that wants no reply.
    journal.peek_message(server.as_fd(), &mut message[..16]).unwrap();
    assert_eq!(&message[..16], b"next message....");
    journal.consume(server.as_fd()).unwrap();
    drop(server);
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"reply", "once");
}

#[test]
fn descriptors_come_with_each_look_and_none_is_left_open() {
    let ((client, server), fd) = (pair(), memfd());
    let mut journal = Journal::new(segment());
    // As some clients do: the descriptors with the first bytes, the rest of the message by itself.
    send(&client, b"head\x14\0", &[fd.as_fd(), fd.as_fd()]);
    send(&client, b"\0\0of 16 by", &[]);
    send(&client, b"body", &[]);
    send(&client, b"none\x12\0\0\0of those", &[]);
    send(&client, b"..", &[]);
    send(&client, b"last\x10\0\0\0message.", &[fd.as_fd()]);
    let before = open_fds();
    for _ in 0..3 {
        let header = journal.peek_header(server.as_fd()).unwrap();
        assert_eq!(&header.bytes, b"head\x14\0\0\0of 16 by");
        assert_eq!((header.fds.len(), header.fds_cut), (2, false));
        assert!(nix::sys::stat::fstat(&header.fds[1]).is_ok());
    }
    let mut message = [0; 20];
    journal.peek_message(server.as_fd(), &mut message).unwrap();
    assert_eq!(&message, b"head\x14\0\0\0of 16 bybody");
    journal.consume(server.as_fd()).unwrap();
    // The kernel's peek walks on to the descriptors of a later message.
    let header = journal.peek_header(server.as_fd()).unwrap();
    assert_eq!((&header.bytes, header.fds.len()), (b"none\x12\0\0\0of those", 0));
    journal.peek_message(server.as_fd(), &mut message[..18]).unwrap();
    journal.consume(server.as_fd()).unwrap();
    let header = journal.peek_header(server.as_fd()).unwrap();
    assert_eq!((&header.bytes, header.fds.len()), (b"last\x10\0\0\0message.", 1));
    drop(header);
    // Other tests open and close theirs meanwhile.
    assert!(open_fds() < before + 100);
}

#[test]
fn client_that_leaves_is_told_from_one_that_is_slow() {
    let (client, server) = pair();
    let mut journal = Journal::new(segment());
    send(&client, b"0123456789", &[]);
    let mut header = || journal.peek_header(server.as_fd()).map(drop);
    assert!(matches!(header(), Err(JournalError::WouldBlock)));
    drop(client);
    until("it is gone", || matches!(header(), Err(JournalError::Cut)));
    let (client, server) = pair();
    drop(client);
    let mut header = || journal.peek_header(server.as_fd()).map(drop);
    until("it is gone", || matches!(header(), Err(JournalError::Closed)));
    let (client, server) = pair();
    send(&client, &[0; 16], &[]);
    journal.peek_message(server.as_fd(), &mut [0; 16]).unwrap();
    drop(client);
    assert!(matches!(journal.reply(server.as_fd(), b"reply", &[]), Err(JournalError::Closed)));
    journal.reset();
    assert_eq!(journal.step().unwrap(), Step::Idle);
}

#[test]
fn longest_message_fits_into_a_default_socket() {
    let (client, server) = pair();
    client.set_nonblocking(true).unwrap();
    let message: Vec<u8> = (0..MAX_MESSAGE).map(|at| at as u8).collect();
    assert_eq!((&client).write(&message).unwrap(), MAX_MESSAGE);
    let mut journal = Journal::new(segment());
    let mut seen = vec![0; MAX_MESSAGE];
    journal.peek_message(server.as_fd(), &mut seen).unwrap();
    assert!(seen == message);
    journal.consume(server.as_fd()).unwrap();
    let mut too_long = vec![0; MAX_MESSAGE + 1];
    let error = journal.peek_message(server.as_fd(), &mut too_long);
    assert!(matches!(error, Err(JournalError::TooLong { .. })));
    assert!(matches!(journal.peek_header(server.as_fd()), Err(JournalError::WouldBlock)));
}

#[test]
fn long_reply_goes_on_where_it_stopped() {
    let (mut client, server) = pair();
    let segment = segment();
    let mut journal = Journal::new(Arc::clone(&segment));
    send(&client, &[0; 16], &[]);
    journal.peek_message(server.as_fd(), &mut [0; 16]).unwrap();
    let reply: Vec<u8> = (0..1_000_000u32).map(|at| (at / 7) as u8).collect();
    let mut received = Vec::new();
    let mut buffer = vec![0; 100_000];
    let mut blocked = 0;
    while let Err(error) = journal.reply(server.as_fd(), &reply, &[]) {
        assert!(matches!(error, JournalError::WouldBlock), "{error}");
        assert!(matches!(journal.consume(server.as_fd()), Err(JournalError::OutOfStep { .. })));
        let shorter = journal.reply(server.as_fd(), &reply[1..], &[]);
        assert!(matches!(shorter, Err(JournalError::OutOfStep { .. })));
        // A successor at each stop.
        journal = Journal::new(Arc::clone(&segment));
        let Recovered::Reply { len, sent, bytes, .. } = journal.recover(server.as_fd()).unwrap()
        else {
            panic!("not replying");
        };
        assert_eq!((len, bytes), (reply.len(), None));
        assert!(sent >= received.len());
        let got = client.read(&mut buffer).unwrap();
        received.extend_from_slice(&buffer[..got]);
        blocked += 1;
    }
    assert!(blocked > 3);
    journal.consume(server.as_fd()).unwrap();
    drop(server);
    client.read_to_end(&mut received).unwrap();
    assert!(received == reply);
}

#[test]
fn corrupt_page_is_an_error() {
    let (client, server) = pair();
    let segment = segment();
    let mut journal = Journal::new(Arc::clone(&segment));
    send(&client, &[0; 16], &[]);
    let words = (&raw const segment.journal).cast::<AtomicU64>();
    let mut state = 3u64;
    for round in 0..20_000u64 {
        for _ in 0..=round % 5 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) % if round % 2 == 0 { 8 } else { 72 };
            let value = if round % 3 == 0 { state } else { (state >> 40) % 5 };
            // SAFETY: within the page, which consists of atomics.
            unsafe { &*words.add(at as usize) }.store(value, Ordering::Relaxed);
        }
        let _ = journal.recover(server.as_fd());
        let _ = journal.reply(server.as_fd(), &[0; 3], &[]);
        let _ = journal.consume(server.as_fd());
        let _ = (&client).write(&[0; 16]);
        client.set_nonblocking(true).unwrap();
        while (&client).read(&mut [0; 64]).is_ok_and(|got| got > 0) {}
    }
    journal.reset();
    assert_eq!(journal.recover(server.as_fd()).unwrap(), Recovered::Idle);
}
