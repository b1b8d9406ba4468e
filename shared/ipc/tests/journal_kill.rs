//! A vfio-user server that is killed at any moment of a conversation: its client sees each reply once.

use ipc::journal::{INLINE_REPLY, Journal, JournalError, Recovered};
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// Request `number` of the conversation below: its length, that of its reply, and the descriptors of both.
fn shape(number: u64) -> (usize, usize, usize, usize) {
    let size = if number % 37 == 5 { 60_000 } else { 16 + (number * 31 % 300) as usize };
    let reply = match number % 29 {
        3 => 250_000,
        11 => INLINE_REPLY + 1,
        12 => INLINE_REPLY,
        _ => 16 + (number * 17 % 900) as usize,
    };
    (size, reply, (number % 5 % 3) as usize, (number % 7 % 3) as usize)
}

/// The reply: its number, its author if short enough to be kept, and bytes that follow from both.
fn reply_to(number: u64, author: u32) -> Vec<u8> {
    let (_, len, _, _) = shape(number);
    let author = if len <= INLINE_REPLY { author } else { 0 };
    let mut reply = vec![(number as u8) ^ (author as u8); len];
    reply[..8].copy_from_slice(&number.to_le_bytes());
    reply[8..12].copy_from_slice(&author.to_le_bytes());
    reply
}

fn ready(fd: BorrowedFd<'_>, events: i16) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd, alive here.
    unsafe { libc::poll(&raw mut poll, 1, 100) };
}

/// Repeats a step until the socket lets it be done.
fn until_done<T>(
    fd: BorrowedFd<'_>,
    events: i16,
    mut step: impl FnMut() -> Result<T, JournalError>,
) -> Option<T> {
    loop {
        match step() {
            Ok(value) => return Some(value),
            Err(JournalError::WouldBlock) => ready(fd, events),
            Err(JournalError::Closed) => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// One life of the server.
fn serve(segment: OwnedFd, fd: BorrowedFd<'_>, passed: BorrowedFd<'_>) -> Option<()> {
    let mut journal = Journal::new(Arc::new(Segment::open(segment).unwrap()));
    let peek = |journal: &mut Journal| {
        let header = until_done(fd, libc::POLLIN, || journal.peek_header(fd))?;
        let number = u64::from_le_bytes(header.bytes[8..].try_into().unwrap());
        let (size, _, fds, _) = shape(number);
        assert_eq!(header.fds.len(), fds, "descriptors of request {number}");
        let mut message = vec![0; size];
        until_done(fd, libc::POLLIN, || journal.peek_message(fd, &mut message))?;
        assert!(message[16..].iter().all(|&byte| byte == number as u8));
        Some(number)
    };
    let mut recovered = journal.recover(fd).unwrap();
    loop {
        let consume_only = matches!(recovered, Recovered::Consume { .. });
        if !consume_only {
            let number = peek(&mut journal)?;
            let mut reply = reply_to(number, std::process::id());
            let mut count = shape(number).3;
            if let Recovered::Reply { bytes, fds, len, .. } = &recovered {
                reply = bytes.clone().unwrap_or(reply);
                assert_eq!(reply.len(), *len);
                assert!(*fds == count || *fds == 0);
                count = *fds;
            }
            let fds = vec![passed; count];
            until_done(fd, libc::POLLOUT, || journal.reply(fd, &reply, &fds))?;
        }
        until_done(fd, libc::POLLIN, || journal.consume(fd))?;
        recovered = Recovered::Idle;
    }
}

/// Reads one reply and checks all of it.
fn check_reply(client: &mut UnixStream, number: u64) {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (_, len, _, count) = shape(number);
    let mut reply = vec![0; len];
    let (mut have, mut fds) = (0, 0);
    while have < len {
        let mut control = nix::cmsg_space!([i32; 16]);
        let mut vector = [std::io::IoSliceMut::new(&mut reply[have..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = client.as_raw_fd();
        let got = recvmsg::<()>(fd, &mut vector, Some(&mut control), flags).unwrap();
        assert_ne!(got.bytes, 0, "the server left");
        for message in got.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = message {
                fds += received.len();
                received.iter().for_each(|&fd| nix::unistd::close(fd).unwrap());
            }
        }
        have += got.bytes;
    }
    let author = u32::from_le_bytes(reply[8..12].try_into().unwrap());
    assert_eq!(reply[..8], number.to_le_bytes(), "number of the reply");
    assert!(reply == reply_to(number, author), "bytes of reply {number}");
    assert_eq!(fds, count, "descriptors of reply {number}");
}

/// Ends the conversation if the test ends early, so that its threads end too.
struct Hangup<'a>(&'a UnixStream, &'a AtomicBool);

impl Drop for Hangup<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        self.0.shutdown(std::net::Shutdown::Both).ok();
    }
}

/// The server is killed `kills` times; the client sees each reply once, whole and in order.
fn conversation(kills: u64, seed: u64) {
    let ((client, server), passed, segment) = (pair(), memfd(), segment());
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let all_sent = AtomicBool::new(false);
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    std::thread::scope(|scope| {
        let hangup = Hangup(&client, &stop);
        let (mut writer, mut reader) = (client.try_clone().unwrap(), client.try_clone().unwrap());
        let (sent, stop, all_sent, passed) = (&sent, &stop, &all_sent, &passed);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.load(Ordering::Relaxed);
                let (size, _, fds, _) = shape(number);
                let mut request = vec![number as u8; size];
                request[4..8].copy_from_slice(&(size as u32).to_le_bytes());
                request[8..16].copy_from_slice(&number.to_le_bytes());
                // As long as it was not cut short the first part holds the descriptors.
                let first = if number % 11 == 4 { 7 } else { 16.min(size) };
                send(&writer, &request[..first], &vec![passed.as_fd(); fds]);
                writer.write_all(&request[first..]).unwrap();
                sent.fetch_add(1, Ordering::Release);
            }
            all_sent.store(true, Ordering::Release);
        });
        let replies = scope.spawn(move || {
            let mut number = 0;
            while !all_sent.load(Ordering::Acquire) || number < sent.load(Ordering::Acquire) {
                if number < sent.load(Ordering::Acquire) {
                    check_reply(&mut reader, number);
                    number += 1;
                } else {
                    std::thread::yield_now();
                }
            }
            number
        });
        for life in 0..=kills {
            let handed = segment.fd().try_clone_to_owned().unwrap();
            // SAFETY: the child runs `serve`, which takes no lock of another thread (glibc's allocator is safe to use
            // after fork), and ends by _exit or a signal.
            let child = match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let served =
                        std::panic::catch_unwind(|| serve(handed, server.as_fd(), passed.as_fd()));
                    // SAFETY: ends the child without the harness.
                    unsafe { libc::_exit(if served.is_ok() { 0 } else { 101 }) }
                }
                ForkResult::Parent { child } => child,
            };
            if life < kills {
                std::thread::sleep(Duration::from_micros(random(2500)));
            } else {
                let until = Instant::now() + Duration::from_secs(60);
                // On a slow machine some lives are too short for a reply.
                while sent.load(Ordering::Acquire) <= kills && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(1));
                }
                stop.store(true, Ordering::Relaxed);
                while !replies.is_finished() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            kill(child, Signal::SIGKILL).unwrap();
            let ended = waitpid(child, None).unwrap();
            assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
            assert!(life == kills || !replies.is_finished(), "a reply was wrong, seed {seed}");
        }
        assert!(replies.is_finished(), "a reply is missing, seed {seed}");
        let count = replies.join().unwrap();
        eprintln!("{count} replies, {kills} kills, seed {seed}");
        assert!(count > kills, "the conversation got on: {count} replies");
        drop(hangup);
    });
}

#[test]
fn client_sees_each_reply_once_however_often_the_server_is_killed() {
    conversation(300, 1);
}

/// The long form: `cargo test --release -p ipc --test journal_kill -- --ignored`.
#[test]
#[ignore = "takes minutes: make chaos runs it"]
fn client_sees_each_reply_once_over_thousands_of_kills() {
    (2..12).for_each(|seed| conversation(2000, seed));
}
