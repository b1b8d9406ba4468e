//! What a drive that takes its time costs a worker that has a queue pair of it.

use std::fs;

use nix::unistd::Pid;
use nvme_driver::{BareQueue, Options};
use nvme_spec::{Command, CommandId, NvmOpcode};

use super::*;

/// Requests whose cost is measured, and how long the drive takes for each.
const ROUNDS: u32 = 3;
const LATENCY: &str = "latency = \"700ms\"\n";

/// A drive that takes its time, and a target on it whose guest rings, so that its worker may sleep for good; `options` are
/// more lines of the bdev.
fn slow(options: &str) -> (Target, Target) {
    let drive = Target::start(&configuration(&format!(
        "[[bdev]]\nname = \"slow\"\ndriver = \"null\"\nsize = \"64MiB\"\n{LATENCY}\
         [[subsystem]]\nname = \"s0\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"slow\"\n\
         [[endpoint]]\nname = \"drive\"\nsubsystem = \"s0\"\n"
    )));
    let target = on_drive(&drive.endpoint("drive"), options) + "doorbells = \"shadow\"\n";
    let target = Target::start(&target);
    (drive, target)
}

/// A client that sleeps, too.
#[track_caller]
fn interrupted(target: &Target, endpoint: &str) -> Client {
    let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
    let options = Options { interrupts: true, ..Options::default() };
    let controller = within(PATIENCE, || Controller::connect_with(&address, &options).ok());
    let controller = controller.expect("the endpoint takes a client");
    let namespace = controller.namespace(NSID).expect("namespace");
    let queue = QueueOptions { interrupt: true, ..QueueOptions::default() };
    let queue = controller.queue_pair(&queue).expect("queue");
    Client { controller, namespace, queue }
}

/// What a process has had of processors.
fn processor_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process that runs");
    // Its name ends with the last parenthesis; user and system time are the 14th and 15th field.
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks =
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("ticks"));
    // USER_HZ is 100 everywhere.
    Duration::from_millis(10) * ticks.sum::<u32>()
}

/// What the worker spends while the drive has its requests, one at a time.
#[track_caller]
fn cost(target: &Target) -> Duration {
    let mut client = interrupted(target, "vm0");
    until("the worker has a queue pair", || leases(target) == 1);
    let worker = target.pid("w0");
    let mut buffer = client.buffer(0, 4096);
    let mut before = Duration::ZERO;
    // The first ones go by the ring, as long as the drive is not known to reach their memory.
    for round in 0..2 + ROUNDS {
        if round == 2 {
            before = processor_time(worker);
        }
        let request = Request::read(&client.namespace, Lba(0), buffer);
        buffer = client.run(request).expect("a read that takes its time").expect("its buffer");
    }
    processor_time(worker).saturating_sub(before)
}

#[test]
fn a_worker_sleeps_while_a_slow_drive_works_unless_it_is_to_poll() {
    let (_drive, target) = slow("");
    let asleep = cost(&target);
    assert!(target.stop().success());
    let (_drive, target) = slow("polled = true\n");
    let polling = cost(&target);
    assert!(4 * asleep < polling, "{asleep:?} asleep, {polling:?} when it polls");
}

#[test]
fn what_a_worker_sleeps_upon_ends_though_the_backend_is_killed() {
    let (_drive, target) = slow("");
    let mut client = interrupted(&target, "vm0");
    for _ in 0..2 {
        until("the worker has a queue pair", || leases(&target) == 1);
        // Known to the drive from here on, and then under way with it.
        let request = Request::read(&client.namespace, Lba(0), client.buffer(0, 4096));
        let buffer = client.run(request).expect("read").expect("its buffer");
        client.queue.submit(Request::read(&client.namespace, Lba(0), buffer)).expect("room");
        client.queue.ring();
        target.kill_and_await_successor("b0");
        assert!(client.queue.wait_next().is_some(), "it ends, however it does");
        until("requests go on", || {
            let request = Request::read(&client.namespace, Lba(0), client.buffer(0, 4096));
            client.run(request).is_ok()
        });
    }
}

#[test]
fn a_drive_without_vectors_enough_is_polled_which_is_said_once() {
    let drive = Target::start(&(one_memory_namespace(&["drive"]) + "vectors = 2\n"));
    let target = Target::start(&on_drive(&drive.endpoint("drive"), ""));
    for round in 0..2_u8 {
        let mut client = Client::connect(&target, "vm0");
        until("the worker has a queue pair", || leases(&target) == 1);
        client.write(8, 0, &[round; 8192]);
        assert!(client.read(8, 0, 8192) == [round; 8192]);
    }
    let said = target.log().matches("no interrupt vector to itself").count();
    assert_eq!(said, 1, "{}", target.log());
}

#[test]
fn a_queue_pair_to_be_lent_interrupts_only_while_that_is_asked_for() {
    let target = Target::start(&one_memory_namespace(&["drive"]));
    let controller = interrupted(&target, "drive").controller;
    let options = QueueOptions { depth: 8, interrupt: true };
    for _ in 0..2 {
        let mut queue = controller.lendable_queue(&options, 0).expect("a queue pair");
        let event = queue.event().expect("a vector to itself").try_clone().expect("a descriptor");
        for _ in 0..3 {
            flush(&mut queue);
            assert_eq!(event.drain().expect("drain"), 0);
            queue.set_interrupting(true).expect("interrupts");
            // What came while nobody asked may be told now.
            event.drain().expect("drain");
            flush(&mut queue);
            until("an interrupt", || event.drain().expect("drain") > 0);
            queue.set_interrupting(false).expect("no interrupts");
            event.drain().expect("drain");
        }
        // Another has its vector next, and the event of the controller's with it.
        let id = queue.id();
        drop(queue);
        let mut queue = controller.bare_queue(&options).expect("a queue pair");
        assert_eq!(queue.id(), id);
        assert!(queue.set_interrupting(true).is_err());
        let event = queue.event().expect("a vector").try_clone().expect("a descriptor");
        flush(&mut queue);
        until("an interrupt", || event.drain().expect("drain") > 0);
    }
}

/// Has the controller carry a command out, and awaits its completion by polling.
#[track_caller]
fn flush(queue: &mut BareQueue) {
    assert!(queue.push(Command::nvm(NvmOpcode::FLUSH, CommandId(0), NSID), &[]), "room");
    queue.ring();
    let completion = within(PATIENCE, || queue.pop()).expect("a completion");
    assert!(completion.status().is_success());
    queue.acknowledge();
}
