//! Resets, shutdown, time-outs, and processes of the target that die or stop.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nvme_driver::{
    ConnectError, Controller, Error, IoError, Options, QueueOptions, QueuePair, Reason, Request,
};
use nvme_spec::command::Fuse;
use nvme_spec::register::{NSSR_RESET, offset};
use nvme_spec::{Command, CommandId, Lba, Nsid, NvmOpcode, Status};
use vireo_tests::host::{Attach, Host};
use vireo_tests::target::Target;
use vireo_tests::wait::{PATIENCE, despite_stalls, until, within};

use crate::{
    ENDPOINTS, MEMORY, RINGED, SLOW, connect, connect_with, grown, options, round_trip, run, start,
};

/// A queue pair with `count` reads of a namespace outstanding.
fn loaded(controller: &Controller, nsid: Nsid, count: u64) -> QueuePair {
    let namespace = controller.namespace(nsid).expect("there");
    let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
    let memory = controller.allocate(count as usize * 4096).expect("memory");
    for (lba, buffer) in (0..).zip(memory.into_chunks(4096)) {
        queue.submit(Request::read(&namespace, Lba(lba * 8), buffer)).expect("room");
    }
    queue.ring();
    queue
}

/// Everything outstanding ends, `count` requests, each with this error.
#[track_caller]
fn all_end_with(queue: &mut QueuePair, count: u64, wanted: IoError) {
    let mut ended = 0;
    while let Some(done) = queue.wait_next() {
        assert_eq!(done.result, Err(wanted), "request {ended} of {count}");
        assert!(done.buffer.is_some());
        ended += 1;
    }
    assert_eq!(ended, count);
}

#[test]
fn a_reset_ends_what_is_outstanding_and_everything_works_again() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        for round in 0..3 {
            // The device must not be done before the reset.
            despite_stalls(|| {
                let mut queue = loaded(&controller, SLOW, 40);
                controller.reset().expect("it comes back");
                all_end_with(&mut queue, 40, IoError::Reset);
                let namespace = controller.namespace(MEMORY).expect("there");
                round_trip(&controller, &mut queue, &namespace, round * 100, 300);
            });
        }
        assert!(controller.status().expect("a register").rdy());
    }
    assert!(target.stop().success());
}

#[test]
fn a_subsystem_reset_is_recovered_from() {
    let shadow = "[[endpoint]]\nname = \"shadow\"\nsubsystem = \"s0\"\ndoorbells = \"shadow\"\n";
    let target = Target::start(&grown("", "1MiB").replace(shadow, ""));
    let controller = connect(&target, "mapped");
    despite_stalls(|| {
        let mut queue = loaded(&controller, SLOW, 4);
        controller.reset_subsystem().expect("it comes back");
        all_end_with(&mut queue, 4, IoError::Reset);
        let namespace = controller.namespace(MEMORY).expect("there");
        round_trip(&controller, &mut queue, &namespace, 64, 64);
    });
    assert!(!controller.status().expect("a register").nssro());
    assert!(target.stop().success());
}

#[test]
fn one_guest_cannot_reset_the_controllers_of_others() {
    let target = start();
    let (first, second) = (connect(&target, "mapped"), connect(&target, "shadow"));
    let mut queue = loaded(&second, SLOW, 4);
    let refused = first.reset_subsystem();
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    // Somebody who does not ask what is on offer.
    drop(first);
    let mut host = Host::attach(target.socket("mapped"), &Attach::default());
    host.write32(offset::NSSR, NSSR_RESET);
    assert!(!host.csts().nssro());
    for _ in 0..4 {
        assert_eq!(queue.wait_next().expect("outstanding").result, Ok(0));
    }
    assert!(target.stop().success());
}

#[test]
fn a_shutdown_is_clean_and_the_next_client_finds_the_data() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        round_trip(&controller, &mut queue, &namespace, 7, 9);
        let before = controller.smart().expect("smart");
        controller.shutdown().expect("it shuts down");
        assert!(!controller.is_alive());
        let refused = controller.namespace(MEMORY);
        assert!(matches!(refused, Err(Error::Gone)), "{refused:?}");
        let buffer = controller.allocate(512);
        assert!(buffer.is_err(), "nothing is registered after a shutdown");
        drop((queue, controller));

        let controller = within(PATIENCE, || {
            let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
            Controller::connect_with(&address, &options()).ok()
        });
        let controller = controller.expect("the endpoint takes the next client");
        let after = controller.smart().expect("smart");
        assert_eq!(after.unsafe_shutdowns, before.unsafe_shutdowns);
        assert!(after.power_cycles.get() > before.power_cycles.get());
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let buffer = controller.allocate(9 * 512).expect("memory");
        let done = run(&mut queue, Request::read(&namespace, Lba(7), buffer));
        assert!(done.buffer.expect("back").to_vec() == crate::pattern(9 * 512, 16));
    }
    assert!(target.stop().success());
}

#[test]
fn half_a_fused_pair_ends_by_itself_and_holds_up_nothing() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(MEMORY).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        let half = Command::nvm(NvmOpcode::COMPARE, CommandId(0), MEMORY).with_fuse(Fuse::FIRST);
        let buffer = controller.allocate(512).expect("memory");
        queue.submit_command(half, Some(buffer), 5).expect("room");
        let done = queue.wait_next().expect("outstanding");
        let Err(IoError::Status(status)) = done.result else { panic!("{:?}", done.result) };
        assert_eq!((done.token, status.code()), (5, Status::ABORTED_MISSING_FUSED));
        assert_eq!((queue.counters().aborted, queue.counters().resets), (0, 0));
        round_trip(&controller, &mut queue, &namespace, 3, 30);
    }
    assert!(target.stop().success());
}

#[test]
fn what_a_device_does_not_give_back_in_time_ends_by_a_reset() {
    let target = start();
    for endpoint in ENDPOINTS {
        // Two seconds without a stall: then the device gives it back.
        despite_stalls(|| {
            let hasty = Options { io_timeout: Duration::from_millis(400), ..options() };
            let controller = connect_with(&target, endpoint, &hasty);
            let mut queue = loaded(&controller, SLOW, 3);
            all_end_with(&mut queue, 3, IoError::Reset);
            let counters = queue.counters();
            assert_eq!((counters.aborted, counters.resets), (3, 1));
            let namespace = controller.namespace(MEMORY).expect("there");
            round_trip(&controller, &mut queue, &namespace, 3, 30);
        });
    }
    assert!(target.stop().success());
}

#[test]
fn a_worker_that_dies_costs_a_reset_and_nothing_else() {
    let target = start();
    let watchful = Options { io_timeout: Duration::from_secs(8), ..options() };
    let controllers = ENDPOINTS.map(|endpoint| connect_with(&target, endpoint, &watchful));
    // The worker must die before its devices are done.
    despite_stalls(|| {
        let mut queues = controllers.each_ref().map(|controller| loaded(controller, SLOW, 8));
        target.kill_and_await_successor("w0");
        for (controller, queue) in controllers.iter().zip(&mut queues) {
            all_end_with(queue, 8, IoError::Reset);
            assert_eq!(queue.counters().aborted, 0, "the fatal status was not looked at");
            let namespace = controller.namespace(MEMORY).expect("there");
            round_trip(controller, queue, &namespace, 1, 500);
        }
    });
    assert!(target.stop().success());
}

#[test]
fn a_frontend_that_dies_ends_everything_and_its_successor_takes_the_next_client() {
    let target = start();
    let connect_again = |endpoint: &str| {
        let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
        let again = within(PATIENCE, || Controller::connect_with(&address, &options()).ok());
        again.expect("the endpoint takes clients")
    };
    // The frontend must die before the devices are done.
    despite_stalls(|| {
        let controllers = ENDPOINTS.map(connect_again);
        let mut queues = controllers.each_ref().map(|controller| loaded(controller, SLOW, 8));
        let before = target.pid("f0");
        kill(before, Signal::SIGKILL).expect("kill a process of our own");
        for queue in &mut queues {
            all_end_with(queue, 8, IoError::Gone);
        }
        for controller in &controllers {
            assert!(matches!(controller.reset(), Err(Error::Gone)));
            assert!(matches!(controller.active_namespaces(), Err(Error::Gone)));
        }
        until("a successor", || target.find("f0").is_some_and(|pid| pid != before));
    });
    for endpoint in ENDPOINTS {
        let again = connect_again(endpoint);
        let namespace = within(PATIENCE, || again.namespace(MEMORY).ok()).expect("there");
        let mut queue = again.queue_pair(&QueueOptions::default()).expect("a queue pair");
        round_trip(&again, &mut queue, &namespace, 5, 5);
    }
}

#[test]
fn a_backend_that_dies_is_noticed_by_nobody() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let namespace = controller.namespace(RINGED).expect("there");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        round_trip(&controller, &mut queue, &namespace, 0, 64);
        target.kill_and_await_successor("b0");
        let buffer = controller.allocate(4096).expect("memory");
        let written = run(&mut queue, Request::write(&namespace, Lba(8), buffer)).result;
        assert_eq!(written, Ok(0), "the successor serves the namespace");
        round_trip(&controller, &mut queue, &namespace, 0, 64);
        let counters = queue.counters();
        assert_eq!((counters.resets, counters.retried), (0, 0));
    }
    assert!(target.stop().success());
}

#[test]
fn a_frontend_that_stops_leaves_io_alone_and_hangs_nobody_else() {
    let target = start();
    let short = Options { admin_timeout: Duration::from_secs(2), ..options() };
    let controller = connect_with(&target, "mapped", &short);
    let namespace = controller.namespace(MEMORY).expect("there");
    let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
    let memory = controller.allocate(64 * 4096).expect("memory");
    let frontend = target.pid("f0");
    kill(frontend, Signal::SIGSTOP).expect("a process of our own");
    for (lba, buffer) in (0..).zip(memory.into_chunks(4096)) {
        let done = run(&mut queue, Request::write(&namespace, Lba(lba * 8), buffer));
        assert_eq!(done.result, Ok(0), "doorbells do not need the frontend");
    }
    let started = Instant::now();
    let error = controller.active_namespaces().expect_err("nobody answers");
    assert!(started.elapsed() < PATIENCE, "{:?}: {error}", started.elapsed());
    let address = format!("vfio-user:{}", target.endpoint("shadow").display());
    let impatient = Options { connect_timeout: Duration::from_millis(500), ..options() };
    let error = Controller::connect_with(&address, &impatient).expect_err("nobody answers");
    assert!(matches!(error, ConnectError::NotAnswering { .. }), "{error}");
    assert!(error.to_string().contains("restart it"), "{error}");
    kill(frontend, Signal::SIGCONT).expect("a process of our own");
    drop((queue, controller));
    for endpoint in ENDPOINTS {
        let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
        let again = within(PATIENCE, || Controller::connect_with(&address, &options()).ok());
        let again = again.expect("it goes on");
        let namespace = again.namespace(MEMORY).expect("there");
        let mut queue = again.queue_pair(&QueueOptions::default()).expect("a queue pair");
        round_trip(&again, &mut queue, &namespace, 5, 5);
    }
    assert!(target.stop().success());
}

#[test]
fn an_endpoint_in_use_and_one_that_is_not_there_are_said_so() {
    let target = start();
    let _first = connect(&target, "mapped");
    let address = format!("vfio-user:{}", target.endpoint("mapped").display());
    let impatient = Options { connect_timeout: Duration::from_millis(800), ..options() };
    let started = Instant::now();
    let error = Controller::connect_with(&address, &impatient).expect_err("it is in use");
    assert!(started.elapsed() < PATIENCE);
    let line = error.to_string();
    assert!(line.contains("serves another client"), "{line}");
    let address = format!("vfio-user:{}", target.endpoint("nothing").display());
    let error = Controller::connect_with(&address, &impatient).expect_err("it is not there");
    assert!(matches!(error, ConnectError::NoSocket { .. }), "{error}");
}

#[test]
fn a_namespace_that_is_taken_away_ends_requests_with_its_status() {
    let target = start();
    for endpoint in ENDPOINTS {
        let controller = connect(&target, endpoint);
        let more = "[[subsystem.namespace]]\nnsid = 5\nbdev = \"more\"\n";
        target.reload_ok(&crate::grown(more, "1MiB"));
        let namespace = within(PATIENCE, || controller.namespace(Nsid(5)).ok()).expect("it came");
        let mut queue = controller.queue_pair(&QueueOptions::default()).expect("a queue pair");
        round_trip(&controller, &mut queue, &namespace, 0, 64);
        target.reload_ok(&crate::grown("", "1MiB"));
        until("the namespace is gone", || {
            let buffer = controller.allocate(512).expect("memory");
            match queue.run(Request::read(&namespace, Lba(0), buffer)) {
                Ok(done) => match done.result {
                    Ok(_) => false,
                    Err(IoError::Status(status)) => {
                        assert_eq!(status.code(), Status::INVALID_NAMESPACE_OR_FORMAT);
                        true
                    }
                    Err(error) => panic!("{error}"),
                },
                Err(rejected) => {
                    assert_ne!(rejected.reason, Reason::Gone);
                    false
                }
            }
        });
        let rest = controller.namespace(MEMORY).expect("there");
        round_trip(&controller, &mut queue, &rest, 0, 64);
    }
    assert!(target.stop().success());
}
