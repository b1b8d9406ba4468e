//! Controllers that are slow, wrong, dead or no controllers at all: every request ends, nothing hangs, nothing panics.

mod scripted;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nvme_driver::{
    ConnectError, Controller, Error, IoError, Options, QueueOptions, Reason, Request,
};
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::{AdminOpcode, Command, Lba, Nsid, NvmOpcode, Status};
use scripted::{Act, Script, Scripted, patient, within};

/// Far above what anything here takes, and below the time-outs that nobody chose: what ends by them is noticed.
const PATIENCE: Duration = Duration::from_secs(25);

/// A time-out short enough for a test. Admin commands have time: a machine that stalls is no controller that fails.
fn hasty() -> Options {
    let io_timeout = Duration::from_millis(800);
    Options { io_timeout, ..patient() }
}

/// The first `count` I/O commands get `act`, the rest are served.
fn first(count: usize, act: Act) -> Box<dyn FnMut(&Command) -> Act + Send> {
    let mut left = count;
    Box::new(move |_| {
        if left == 0 {
            return Act::Serve;
        }
        left -= 1;
        act
    })
}

#[test]
fn a_failure_that_may_pass_is_tried_again() {
    let target = Scripted::start(Script {
        io: first(3, Act::Status(Status::INTERNAL_ERROR)),
        ..Script::default()
    });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let done = queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap();
    assert_eq!((done.result, queue.counters().retried), (Ok(0), 3));
}

#[test]
fn a_failure_is_not_tried_for_ever_nor_against_the_controllers_word() {
    for (status, tries) in [(Status::INTERNAL_ERROR, 5), (Status::INTERNAL_ERROR.with_dnr(), 1)] {
        let target = Scripted::start(Script {
            io: first(usize::MAX, Act::Status(status)),
            ..Script::default()
        });
        let controller = target.connect();
        let namespace = controller.namespace(Nsid(1)).unwrap();
        let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
        let buffer = controller.allocate(4096).unwrap();
        let done = queue.run(Request::write(&namespace, Lba(0), buffer)).unwrap();
        assert_eq!(done.result, Err(IoError::Status(status)));
        assert_eq!(target.engine.lock().unwrap().count(NvmOpcode::WRITE), tries);
    }
}

#[test]
fn the_retry_delay_that_a_status_asks_for_is_kept() {
    let target = Scripted::start(Script {
        crdt1: 2,
        io: first(1, Act::Status(Status::NAMESPACE_NOT_READY.with_crd(1))),
        ..Script::default()
    });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let started = Instant::now();
    let done = queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap();
    assert_eq!(done.result, Ok(0));
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[test]
fn one_failed_piece_fails_the_whole_request_once() {
    let target = Scripted::start(Script {
        mdts: 1,
        io: Box::new(|command| match command.slba().0 {
            32 => Act::Status(Status::UNRECOVERED_READ_ERROR.with_dnr()),
            _ => Act::Serve,
        }),
        ..Script::default()
    });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(128 * 512).unwrap();
    let done = queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap();
    let error = IoError::Status(Status::UNRECOVERED_READ_ERROR.with_dnr());
    assert_eq!(done.result, Err(error));
    assert_eq!(done.buffer.unwrap().len(), 128 * 512);
    assert!(queue.wait_next().is_none(), "it completes once");
}

#[test]
fn a_command_that_does_not_complete_is_aborted_then_the_controller_reset() {
    let target = Scripted::start(Script { io: first(1, Act::Swallow), ..Script::default() });
    let controller = target.connect_with(&hasty());
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let done = within(PATIENCE, || queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap());
    assert_eq!(done.result, Err(IoError::Reset));
    let counters = queue.counters();
    assert_eq!((counters.aborted, counters.resets), (1, 1));
    {
        let engine = target.engine.lock().unwrap();
        assert_eq!((engine.count_admin(AdminOpcode::ABORT), engine.enables), (1, 2));
    }
    // The queue is there again.
    let done = queue.run(Request::read(&namespace, Lba(1), done.buffer.unwrap())).unwrap();
    assert_eq!(done.result, Ok(0));
}

#[test]
fn a_command_that_can_be_aborted_times_out_alone() {
    let target = Scripted::start(Script { io: first(1, Act::UntilAborted), ..Script::default() });
    let controller = target.connect_with(&hasty());
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let done = within(PATIENCE, || queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap());
    assert_eq!(done.result, Err(IoError::TimedOut));
    let counters = queue.counters();
    assert_eq!((counters.aborted, counters.resets), (1, 0));
    assert_eq!(target.engine.lock().unwrap().enables, 1);
}

#[test]
fn a_controller_that_reports_a_fatal_error_is_reset_before_the_time_out() {
    let target = Scripted::start(Script { io: first(1, Act::Fail), ..Script::default() });
    let options = Options { io_timeout: Duration::from_secs(4), ..hasty() };
    let controller = target.connect_with(&options);
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    // What comes to the time-out is aborted first.
    let done = within(PATIENCE, || queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap());
    assert_eq!((done.result, queue.counters().aborted), (Err(IoError::Reset), 0));
    let done = queue.run(Request::read(&namespace, Lba(0), done.buffer.unwrap())).unwrap();
    assert_eq!(done.result, Ok(0));
}

#[test]
fn a_target_that_stops_answering_is_given_up_in_time() {
    let target = Scripted::start(Script { io: first(1, Act::Swallow), ..Script::default() });
    let options = Options { admin_timeout: Duration::from_secs(2), ..hasty() };
    let controller = target.connect_with(&options);
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    // Neither its queues nor its socket are served as long as somebody holds this.
    let held = target.engine.lock().unwrap();
    let done = within(PATIENCE, || queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap());
    assert_eq!(done.result, Err(IoError::Gone));
    within(PATIENCE, || {
        assert!(matches!(controller.namespace(Nsid(1)), Err(Error::Gone)));
        drop((queue, controller));
    });
    drop(held);
}

#[test]
fn a_slow_command_is_not_aborted() {
    let target = Scripted::start(Script {
        io: first(1, Act::Late(Duration::from_millis(1200))),
        ..Script::default()
    });
    // It is late by the time that the controller's status is looked at, and far from its end.
    let options = Options { io_timeout: Duration::from_secs(4), ..hasty() };
    let controller = target.connect_with(&options);
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    let buffer = controller.allocate(4096).unwrap();
    let done = queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap();
    assert_eq!((done.result, queue.counters().aborted), (Ok(0), 0));
}

#[test]
fn whoever_does_not_poll_for_long_finds_completions_not_time_outs() {
    let target = Scripted::start(Script::default());
    let controller = target.connect_with(&hasty());
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    queue.submit(Request::read(&namespace, Lba(0), controller.allocate(4096).unwrap())).unwrap();
    queue.ring();
    while target.engine.lock().unwrap().count(NvmOpcode::READ) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(queue.wait_next().unwrap().result, Ok(0));
    assert_eq!(queue.counters().aborted, 0);
}

#[test]
fn completions_of_what_was_never_sent_reset_the_controller() {
    for act in [Act::WrongCid, Act::WrongSqid] {
        let target = Scripted::start(Script { io: first(1, act), ..Script::default() });
        let controller = target.connect_with(&hasty());
        let namespace = controller.namespace(Nsid(1)).unwrap();
        let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
        let buffer = controller.allocate(4096).unwrap();
        let done =
            within(PATIENCE, || queue.run(Request::read(&namespace, Lba(0), buffer)).unwrap());
        assert_eq!(done.result, Err(IoError::Reset));
        let done = queue.run(Request::read(&namespace, Lba(0), done.buffer.unwrap())).unwrap();
        assert_eq!(done.result, Ok(0));
    }
}

#[test]
fn a_dead_target_ends_every_request_of_every_queue() {
    let mut target = Scripted::start(Script {
        mdts: 1,
        io: first(usize::MAX, Act::Swallow),
        ..Script::default()
    });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queues: Vec<_> = (0..2)
        .map(|_| controller.queue_pair(&QueueOptions { depth: 16, interrupt: false }).unwrap())
        .collect();
    for queue in &mut queues {
        for (token, len) in [(0, 4096), (1, 4096), (2, 128 * 1024), (3, 512 * 1024)] {
            let buffer = controller.allocate(len).unwrap();
            queue.submit(Request::read(&namespace, Lba(0), buffer).with_token(token)).unwrap();
        }
        queue.ring();
    }
    target.kill();
    for queue in &mut queues {
        let mut ended = Vec::new();
        within(PATIENCE, || {
            while let Some(done) = queue.wait_next() {
                assert_eq!(done.result, Err(IoError::Gone));
                assert!(done.buffer.is_some());
                ended.push(done.token);
            }
        });
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2, 3]);
        assert_eq!(queue.poll(8, |_, _| {}), 0);
    }
    let queue = &mut queues[0];
    assert!(controller.allocate(4096).is_err(), "nothing is registered with a dead target");
    assert!(!controller.is_alive());
    assert!(matches!(controller.reset(), Err(Error::Gone)));
    assert!(matches!(controller.namespace(Nsid(1)), Err(Error::Gone | Error::Transport(_))));
    assert!(queue.wait_next().is_none());
}

#[test]
fn a_target_that_dies_while_it_is_used_hangs_nobody() {
    for after in [0, 1, 7] {
        let mut left = after;
        let target = Scripted::start(Script {
            io: Box::new(move |_| {
                left -= 1;
                if left < 0 { Act::Die } else { Act::Serve }
            }),
            ..Script::default()
        });
        let controller = target.connect();
        let namespace = controller.namespace(Nsid(1)).unwrap();
        let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
        let buffers = controller.allocate(32 * 4096).unwrap().into_chunks(4096);
        let (mut good, mut gone) = (0, 0);
        within(PATIENCE, || {
            for buffer in buffers {
                match queue.run(Request::read(&namespace, Lba(0), buffer)) {
                    Ok(done) if done.result.is_ok() => good += 1,
                    Ok(done) => {
                        assert_eq!(done.result, Err(IoError::Gone));
                        gone += 1;
                    }
                    Err(rejected) => assert_eq!(rejected.reason, Reason::Gone),
                }
            }
            drop(queue);
            drop(controller);
        });
        assert_eq!((good, gone), (after, 1));
    }
}

#[test]
fn a_reset_by_another_handle_ends_requests_and_the_queue_comes_back() {
    let target = Scripted::start(Script { io: first(4, Act::Swallow), ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    for buffer in controller.allocate(4 * 4096).unwrap().into_chunks(4096) {
        queue.submit(Request::write(&namespace, Lba(0), buffer)).unwrap();
    }
    queue.ring();
    let other = controller.clone();
    std::thread::spawn(move || other.reset().unwrap()).join().unwrap();
    let mut buffers = Vec::new();
    while let Some(done) = queue.wait_next() {
        assert_eq!(done.result, Err(IoError::Reset));
        buffers.extend(done.buffer);
    }
    assert_eq!(buffers.len(), 4);
    for buffer in buffers {
        let done = queue.run(Request::write(&namespace, Lba(0), buffer)).unwrap();
        assert_eq!(done.result, Ok(0));
    }
}

#[test]
fn what_is_submitted_after_a_reset_is_not_ended_by_it() {
    let target = Scripted::start(Script { mdts: 1, ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let mut queue = controller.queue_pair(&QueueOptions::default()).unwrap();
    for len in [4096, 64 * 1024] {
        controller.reset().unwrap();
        let buffer = controller.allocate(len).unwrap();
        let done = queue.run(Request::write(&namespace, Lba(0), buffer)).unwrap();
        assert_eq!(done.result, Ok(0));
    }
    controller.reset().unwrap();
    let flush = Command::nvm(NvmOpcode::FLUSH, nvme_spec::CommandId(0), Nsid(1));
    queue.submit_command(flush, None, 7).unwrap();
    let done = queue.wait_next().unwrap();
    assert_eq!((done.token, done.result), (7, Ok(0)));
}

#[test]
fn a_controller_that_cannot_be_disabled_is_given_up() {
    let target = Scripted::start(Script { never_disabled: true, to: 4, ..Script::default() });
    let controller = target.connect();
    // The device reset works where CC.EN does not.
    controller.reset().unwrap();
    assert!(controller.is_alive());
}

#[test]
fn a_controller_that_never_becomes_ready_is_an_error_in_time() {
    let target = Scripted::start(Script { never_ready: true, to: 1, ..Script::default() });
    let error = within(PATIENCE, || Controller::connect(&target.address()).unwrap_err());
    let text = error.to_string();
    assert!(text.contains("enabling the controller took longer than 500ms"), "{text}");
}

#[test]
fn an_admin_command_that_never_completes_is_an_error_in_time() {
    let mut calls = 0;
    let target = Scripted::start(Script {
        admin: Box::new(move |command| {
            calls += usize::from(command.admin_opcode() == AdminOpcode::IDENTIFY);
            if calls > 1 { Act::Swallow } else { Act::Serve }
        }),
        ..Script::default()
    });
    let options = Options { admin_timeout: Duration::from_secs(2), ..hasty() };
    let controller = target.connect_with(&options);
    let error = within(PATIENCE, || controller.namespace(Nsid(1)).unwrap_err());
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    // Not for ever: a reset brings it back, and the outstanding command is forgotten.
    controller.reset().unwrap_err();
}

#[test]
fn events_reach_whoever_asks_and_name_the_namespaces() {
    let target = Scripted::start(Script::default());
    let controller = target.connect();
    assert_eq!(controller.next_event(Duration::ZERO).unwrap(), None);
    for round in 0..10 {
        let event = AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED;
        let asked = Instant::now();
        while !target.engine.lock().unwrap().raise(event) {
            assert!(asked.elapsed() < PATIENCE, "no event is asked for in round {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        let event = controller.next_event(PATIENCE).unwrap().unwrap();
        assert_eq!(event.event, AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
    }
}

/// What `connect` says to a server that does `act` with its one client, which waits for the first answers so long.
fn connect_to(
    connect_timeout: Duration,
    act: impl FnOnce(UnixStream) + Send + 'static,
) -> ConnectError {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("cntrl")).unwrap();
    let server = std::thread::spawn(move || act(listener.accept().unwrap().0));
    let address = format!("vfio-user:{}", directory.path().display());
    let options = Options { connect_timeout, ..patient() };
    let error = within(PATIENCE, || Controller::connect_with(&address, &options).unwrap_err());
    server.join().unwrap();
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    error
}

#[test]
fn a_socket_that_is_not_there_or_not_listened_on_is_said_so() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("vfio-user:{}/nothing", directory.path().display());
    let error = Controller::connect(&address).unwrap_err();
    assert!(matches!(error, ConnectError::NoSocket { .. }), "{error}");
    drop(UnixListener::bind(directory.path().join("cntrl")).unwrap());
    let address = format!("vfio-user:{}", directory.path().display());
    let error = Controller::connect(&address).unwrap_err();
    assert!(matches!(error, ConnectError::NotListening { .. }), "{error}");
}

#[test]
fn a_server_that_is_silent_speaks_garbage_or_hangs_up_is_said_so() {
    // It stays until its client leaves.
    let silent = connect_to(Duration::from_millis(300), |mut stream| {
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
    });
    assert!(matches!(silent, ConnectError::NotAnswering { .. }), "{silent}");
    let garbage = connect_to(PATIENCE, |mut stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok();
        let _ = stream.read(&mut [0; 512]);
    });
    assert!(matches!(garbage, ConnectError::NotVfioUser { .. }), "{garbage}");
    let gone = connect_to(PATIENCE, drop);
    assert!(matches!(gone, ConnectError::Closed { .. }), "{gone}");
}

#[test]
fn a_server_that_takes_nobody_in_is_not_waited_for_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cntrl");
    let _listener = UnixListener::bind(&path).unwrap();
    // Clients that wait already, until the backlog is full.
    let mut waiting = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()) {
            Ok(()) => waiting.push(client),
            Err(error) => break assert_eq!(error, nix::Error::EAGAIN),
        }
    }
    let address = format!("vfio-user:{}", path.display());
    let options = Options { connect_timeout: Duration::from_millis(300), ..patient() };
    let error = within(PATIENCE, || Controller::connect_with(&address, &options).unwrap_err());
    assert!(matches!(error, ConnectError::NotAnswering { .. }), "{error}");
}

#[test]
fn a_server_that_answers_everything_with_errors_is_said_so() {
    let error = connect_to(PATIENCE, |mut stream| {
        let mut message = [0; 4096];
        while let Ok(len @ 16..) = stream.read(&mut message) {
            let mut reply = message[..16].to_vec();
            reply[4..8].copy_from_slice(&16_u32.to_ne_bytes());
            reply[8..12].copy_from_slice(&0x21_u32.to_ne_bytes());
            reply[12..16].copy_from_slice(&22_u32.to_ne_bytes());
            assert!(len >= 16);
            if stream.write_all(&reply).is_err() {
                break;
            }
        }
    });
    assert!(matches!(error, ConnectError::Transport { .. }), "{error}");
}

#[test]
fn a_pci_address_without_a_device_is_said_so() {
    let error = Controller::connect("pcie:ffff:ff:1f.7").unwrap_err();
    assert!(matches!(error, ConnectError::NoDevice { .. }), "{error}");
}
