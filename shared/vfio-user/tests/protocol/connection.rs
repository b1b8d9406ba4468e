//! Client and server over a socket.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vfio_user::client::{Client, ClientError, VersionStyle};
use vfio_user::dma::{DmaAccess, DmaRequest, DmaUnmap, Iova};
use vfio_user::irq::IrqIndex;
use vfio_user::region::RegionIndex;
use vfio_user::server::{ServeError, Session, serve};
use vfio_user::socket::{Connection, SocketError};
use vfio_user::version::{Capabilities, Limits, Proposal};
use vfio_user::{Command, Errno, Header};

use crate::support::{BAR0_SIZE, TestDevice, bytes, description, event, memfd};

type Server = JoinHandle<(Result<(), ServeError>, TestDevice)>;

const WAIT: Duration = Duration::from_secs(60);

/// A server thread; with `defer`, deferred acts are completed `defer` later.
fn server(defer: Option<Duration>) -> (UnixStream, Server) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (complete, mut completions) = tokio::sync::mpsc::channel(1);
            if let Some(delay) = defer {
                tokio::spawn(async move {
                    loop {
                        tokio::time::sleep(delay).await;
                        if complete.send(Ok(())).await.is_err() {
                            break;
                        }
                    }
                });
            }
            let stream = tokio::net::UnixStream::from_std(theirs).unwrap();
            let mut session = Session::new(description(), Limits::default());
            let mut device = TestDevice::new();
            device.defer = defer.is_some();
            let result = serve(stream, &mut session, &mut device, &mut completions).await;
            (result, device)
        })
    });
    (ours, thread)
}

/// A client that takes no machine that stalls for a server that hangs.
fn patient(stream: UnixStream) -> Client {
    let mut client = Client::new(stream);
    client.set_timeout(WAIT);
    client
}

fn json() -> VersionStyle {
    let capabilities = Capabilities { write_multiple: Some(true), ..Capabilities::default() };
    VersionStyle::Json(Proposal { major: 0, minor: 1, capabilities })
}

#[test]
fn client_drives_a_device_from_version_to_goodbye() {
    let (stream, server) = server(None);
    let mut client = patient(stream);
    let answer = client.version(&json()).unwrap();
    assert_eq!((answer.minor, answer.capabilities.write_multiple), (1, Some(true)));
    assert_eq!(client.device_info().unwrap().num_regions, 9);
    let bar0 = client.region_info(RegionIndex::BAR0).unwrap();
    assert_eq!((bar0.info.size, bar0.areas.len(), bar0.fd.is_some()), (BAR0_SIZE, 1, true));
    assert_eq!(client.irq_info(IrqIndex::MSIX).unwrap().count, 64);
    let memory = memfd(0x2000);
    let access = DmaAccess::new().with_read(true).with_write(true);
    let first = client.post_dma_map(Iova(0), 0x1000, access, Some((memory.as_fd(), 0))).unwrap();
    let second = client.post_dma_map(Iova(0x1000), 0x1000, access, None).unwrap();
    client.wait(first).unwrap();
    client.wait(second).unwrap();
    let eventfds: Vec<_> = (0..40).map(|_| event()).collect();
    client.set_eventfds(IrqIndex::MSIX, 0, &eventfds).unwrap();
    client.post_region_write(RegionIndex::BAR0, 0x20, &[1, 2, 3, 4]).unwrap();
    let mut read = [0; 4];
    client.region_read(RegionIndex::BAR0, 0x20, &mut read).unwrap();
    assert_eq!(read, [1, 2, 3, 4]);
    client.dma_unmap(DmaUnmap::Exact { iova: Iova(0), size: 0x1000 }).unwrap();
    client.reset().unwrap();
    drop(client);
    let (result, device) = server.join().unwrap();
    result.unwrap();
    assert_eq!((device.maps.len(), device.resets), (1, 1));
    assert!(device.vectors.eventfd(39).is_some());
}

#[test]
fn deferred_acts_hold_their_replies_back_and_keep_the_order() {
    let (stream, server) = server(Some(Duration::from_millis(5)));
    let mut client = patient(stream);
    client.version(&VersionStyle::Bare { minor: 0 }).unwrap();
    let reset = client.post(Command::DEVICE_RESET, &[], &[]).unwrap();
    let mut config = [0; 4096];
    client.region_read(RegionIndex::CONFIG, 0, &mut config).unwrap();
    assert!(matches!(client.wait(reset), Err(ClientError::BadReply { .. })), "dropped in order");
    drop(client);
    let (result, device) = server.join().unwrap();
    result.unwrap();
    assert_eq!(device.resets, 1);
}

#[test]
fn refusal_is_typed_and_the_connection_goes_on() {
    let (stream, server) = server(None);
    let mut client = patient(stream);
    client.version(&json()).unwrap();
    match client.call(Command::DEVICE_FEATURE, &[0; 8], &[]) {
        Err(ClientError::Refused { command, source }) => {
            assert_eq!((command, source), (Command::DEVICE_FEATURE, Errno::ENOTSUP));
        }
        other => panic!("{other:?}"),
    }
    client.reset().unwrap();
    drop(client);
    server.join().unwrap().0.unwrap();
}

#[test]
fn unknown_command_with_a_large_payload_is_consumed_whole() {
    let (stream, server) = server(None);
    let mut client = patient(stream);
    client.version(&json()).unwrap();
    for size in [1, 4096, 65_536, 300_000, 1 << 20] {
        let body = vec![0xa5; size];
        let refused = client.call(Command(77), &body, &[]);
        assert!(matches!(refused, Err(ClientError::Refused { .. })), "{size}");
    }
    client.reset().unwrap();
    drop(client);
    server.join().unwrap().0.unwrap();
}

#[test]
fn message_that_comes_in_pieces_is_handled_when_it_is_whole() {
    let (mut stream, server) = server(None);
    let message = bytes().u16(9).u16(1).u32(20).u32(0).u32(0).u16(0).u16(0).0;
    for piece in message.chunks(3) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let reply = Connection::new(stream.try_clone().unwrap()).receive(WAIT).unwrap();
    assert_eq!((reply.header.id, reply.header.command), (9, Command::VERSION));
    drop((stream, reply));
    server.join().unwrap().0.unwrap();
}

#[test]
fn descriptors_ahead_of_the_body_are_kept_with_their_message() {
    let (stream, server) = server(None);
    let mut client = patient(stream);
    client.version(&json()).unwrap();
    let memory = memfd(4096);
    let head = bytes().u16(3).u16(2).u32(48).u32(0).u32(0).0;
    client.send_raw(&head, &[memory.as_fd()]).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let body = bytes().u32(32).u32(3).u64(0).u64(0).u64(0x1000).0;
    client.send_raw(&body, &[]).unwrap();
    let reply = client.receive_raw().unwrap();
    assert!(reply.header.command == Command::DMA_MAP && !reply.header.flags.error());
    drop(client);
    let (result, device) = server.join().unwrap();
    result.unwrap();
    assert!(device.maps[0].has_fd);
}

#[test]
fn damaged_framing_closes_the_connection() {
    for size in [0_u32, 15, u32::MAX] {
        let (stream, server) = server(None);
        let mut client = patient(stream);
        let head = bytes().u16(0).u16(1).u32(size).u32(0).u32(0).0;
        client.send_raw(&head, &[]).unwrap();
        let closed = client.receive_raw();
        assert!(matches!(closed, Err(SocketError::Closed)), "{closed:?}");
        assert!(matches!(server.join().unwrap().0, Err(ServeError::Framing(_))));
    }
}

#[test]
fn goodbye_within_a_message_is_noticed() {
    for bytes_sent in [8, 18] {
        let (mut stream, server) = server(None);
        let message = bytes().u16(9).u16(1).u32(20).u32(0).u32(0).u16(0).u16(0).0;
        stream.write_all(&message[..bytes_sent]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        drop(stream);
        assert!(matches!(server.join().unwrap().0, Err(ServeError::Truncated)), "{bytes_sent}");
    }
}

#[test]
fn server_that_does_not_answer_is_given_up_in_time() {
    let (stream, _silent) = UnixStream::pair().unwrap();
    let mut client = patient(stream);
    client.set_timeout(Duration::from_millis(30));
    let begun = Instant::now();
    let result = client.device_info();
    let timed_out =
        matches!(result, Err(ClientError::Exchange { source: SocketError::TimedOut { .. }, .. }));
    assert!(timed_out, "{result:?}");
    assert!(begun.elapsed() < WAIT);
    // Nor does it hang when the server stops taking what is sent.
    let body = vec![0; 1 << 20];
    let result = client.call(Command::REGION_WRITE, &body, &[]);
    assert!(matches!(result, Err(ClientError::Exchange { .. })), "{result:?}");
}

#[test]
fn socket_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cntrl");
    let error = Client::connect(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("connect to {}", path.display()));
}

#[test]
fn client_answers_the_servers_dma_while_it_waits() {
    let (stream, server) = UnixStream::pair().unwrap();
    let server = Connection::new(server);
    let thread = std::thread::spawn(move || {
        let command = server.receive(WAIT).unwrap();
        let mut answers = Vec::new();
        for request in [
            DmaRequest::Read { iova: Iova(0x1000), count: 4 },
            DmaRequest::Write { iova: Iova(0x1000), data: vec![7; 4] },
            DmaRequest::Read { iova: Iova(0xbad), count: 4 },
        ] {
            server.send(&request.encode(9, 4096).unwrap(), &[], WAIT).unwrap();
            let reply = server.receive(WAIT).unwrap();
            answers.push(vfio_user::dma::parse_reply(&request, &reply.header, &reply.body));
        }
        let reply = command.header.reply(0);
        server.send(&reply.with_body(&[]), &[], WAIT).unwrap();
        answers
    });
    let mut client = patient(stream);
    client.serve_dma(Box::new(|request| match request {
        DmaRequest::Read { iova: Iova(0x1000), count } => Ok(vec![3; *count as usize]),
        DmaRequest::Write { iova: Iova(0x1000), .. } => Ok(Vec::new()),
        _ => Err(Errno::EFAULT),
    }));
    client.reset().unwrap();
    let answers = thread.join().unwrap();
    assert_eq!(answers, [Ok(vec![3; 4]), Ok(vec![]), Err(Errno::EFAULT)]);
}

#[test]
fn server_that_never_stops_asking_is_given_up_in_time() {
    let (stream, server) = UnixStream::pair().unwrap();
    let server = Connection::new(server);
    let thread = std::thread::spawn(move || {
        let request = DmaRequest::Read { iova: Iova(0), count: 4 }.encode(0, 4096).unwrap();
        while server.send(&request, &[], WAIT).is_ok() && server.receive(WAIT).is_ok() {}
    });
    let mut client = patient(stream);
    client.set_timeout(Duration::from_millis(50));
    let result = client.reset();
    let timed_out =
        matches!(result, Err(ClientError::Exchange { source: SocketError::TimedOut { .. }, .. }));
    assert!(timed_out, "{result:?}");
    drop(client);
    thread.join().unwrap();
}

#[test]
fn peeked_message_stays_until_it_is_consumed_and_gives_its_descriptors_each_time() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (ours, theirs) = (Connection::new(ours), Connection::new(theirs));
    let message = Header::command(1, Command::DMA_MAP, 32).with_body(&[7; 32]);
    ours.send(&message, &[memfd(0).as_fd(), memfd(0).as_fd()], WAIT).unwrap();
    ours.send(&message, &[], WAIT).unwrap();
    for _ in 0..2 {
        let peeked = theirs.peek(WAIT).unwrap();
        assert_eq!((peeked.body.len(), peeked.fds.len()), (32, 2));
    }
    let mut first = theirs.peek(WAIT).unwrap();
    theirs.consume(&mut first).unwrap();
    assert_eq!(theirs.receive(WAIT).unwrap().fds.len(), 0);
    let nothing = theirs.receive(Duration::from_millis(1));
    assert!(matches!(nothing, Err(SocketError::TimedOut { .. })));
}

#[test]
fn more_descriptors_than_allowed_are_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fds: Vec<_> = (0..17).map(|_| memfd(0)).collect();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    // This end builds no such message, so it is sent by plain means.
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(17))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed)));
    let message = Header::command(1, Command::DMA_MAP, 0).with_body(&[]);
    let sent = rustix::net::sendmsg(
        &ours,
        &[std::io::IoSlice::new(&message)],
        &mut control,
        rustix::net::SendFlags::empty(),
    );
    assert_eq!(sent, Ok(16));
    let received = Connection::new(theirs).receive(WAIT);
    assert!(matches!(received, Err(SocketError::TooManyFds)), "{received:?}");
}
