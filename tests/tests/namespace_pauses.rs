//! Pauses of one namespace between real processes, by the admin client, while clients do I/O.

use nvme_spec::{Iova, Lba, Nsid, NvmOpcode};
use serde_json::Value;
use vireo_tests::admin_client::{refused, vireo};
use vireo_tests::host::{Host, Neighbour, commands};
use vireo_tests::target::{Target, configuration};
use vireo_tests::wait::{PATIENCE, until, within};

/// In memory; a lease.
const MEMORY: Nsid = Nsid(1);
/// A file, by ring.
const DISK: Nsid = Nsid(2);

/// Namespaces 1 and 2 of one subsystem, and endpoints `vm0` to `vm2`.
fn start() -> Target {
    let mut text = "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"16MiB\"\n\
                    [[bdev]]\nname = \"disk\"\ndriver = \"file\"\npath = \"@DIR@/disk.img\"\n\
                    create = true\nsize = \"16MiB\"\n[[subsystem]]\nname = \"s0\"\n\
                    [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
                    [[subsystem.namespace]]\nnsid = 2\nbdev = \"disk\"\n"
        .to_owned();
    for name in ["vm0", "vm1", "vm2"] {
        text += &format!("[[endpoint]]\nname = \"{name}\"\nsubsystem = \"s0\"\n");
    }
    Target::start(&configuration(&text))
}

/// What it prints once it succeeds: it is refused where a process was too slow for it.
#[track_caller]
fn ok(target: &Target, arguments: &[&str]) -> String {
    let mut last = None;
    let answer = within(PATIENCE, || {
        let output = vireo(target, arguments);
        let answer = output.status.success().then(|| output.stdout.clone());
        last = Some(output);
        answer
    });
    let answer = answer.unwrap_or_else(|| panic!("{arguments:?}: {last:?}\n{}", target.log()));
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn json(target: &Target, arguments: &[&str]) -> Value {
    let text = ok(target, &[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

fn is_paused(target: &Target, name: &str) -> bool {
    let shown = json(target, &["namespace", "get", name]);
    shown["pause_state"] == "PAUSE_STATE_PAUSED"
}

fn is_running(target: &Target, name: &str) -> bool {
    let shown = json(target, &["namespace", "get", name]);
    shown["pause_state"] == "PAUSE_STATE_RUNNING"
}

/// Commands done on the namespace of the file.
fn done(target: &Target) -> [Value; 2] {
    let stats = json(target, &["stats", "get", "subsystems/s0/namespaces/2"]);
    let total = &stats["stats"][0]["total"];
    [total["reads"].clone(), total["writes"].clone()]
}

/// Sends a read of a page.
fn submit(host: &mut Host, nsid: Nsid, buffer: Iova) {
    let read = commands::io(NvmOpcode::READ, nsid, Lba(0), 8);
    host.submit(0, read.with_prps(buffer, Iova(0)));
}

/// Waits for one completion.
fn completes(host: &mut Host) {
    let completion = host.wait("a read", |host| host.poll(0));
    assert!(completion.status().is_success(), "{completion:?}");
}

#[test]
fn a_namespace_is_paused_on_all_controllers_while_others_go_on() {
    let target = start();
    let paused = [("vm0", 0), ("vm1", 4096)]
        .map(|(vm, lba)| Neighbour::start(target.socket(vm), DISK, Lba(lba)));
    let other = Neighbour::start(target.socket("vm2"), MEMORY, Lba(0));
    paused.iter().for_each(Neighbour::goes_on);
    for _ in 0..2 {
        ok(&target, &["namespace", "pause", "s0/2", "--timeout", "60s"]);
        until("it says so", || is_paused(&target, "s0/2"));
    }
    until("the list says so", || ok(&target, &["namespace", "list"]).contains("paused"));
    let image = target.site().directory().join("disk.img");
    let (before, snapshot) = (done(&target), std::fs::read(&image).expect("read the image"));
    other.goes_on();
    assert_eq!(done(&target), before, "nothing is done meanwhile");
    assert!(std::fs::read(&image).expect("read the image") == snapshot, "the image is at rest");
    target.kill_and_await_successor("m0");
    until("its successor says so, too", || is_paused(&target, "s0/2"));
    until("the other runs", || is_running(&target, "s0/1"));
    for _ in 0..2 {
        ok(&target, &["namespace", "resume", "s0/2"]);
        until("it runs", || is_running(&target, "s0/2"));
    }
    paused.iter().for_each(Neighbour::goes_on);
    // A pause that ends by itself.
    ok(&target, &["namespace", "pause", "s0/2", "--timeout", "60s", "--max", "200ms"]);
    paused.iter().for_each(Neighbour::goes_on);
    until("it runs", || is_running(&target, "s0/2"));
    for neighbour in paused.into_iter().chain([other]) {
        neighbour.finish();
    }
}

#[test]
fn a_paused_namespace_stays_so_for_the_next_worker_and_client() {
    let target = start();
    let mut host = Host::connect(target.socket("vm0"));
    let buffer = host.memory.allocate(4096).iova;
    ok(&target, &["namespace", "pause", "s0/1"]);
    submit(&mut host, MEMORY, buffer);
    target.kill_and_await_successor("w0");
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    until("the successor serves", || target.site().vireo(&["status"]).status.success());
    host.enable();
    host.create_queues(1, 64);
    until("it is paused again", || is_paused(&target, "s0/1"));
    submit(&mut host, MEMORY, buffer);
    submit(&mut host, DISK, buffer);
    completes(&mut host);
    assert!(host.poll(0).is_none(), "its successor holds it, too");
    drop(host);
    let mut host = Host::connect(target.socket("vm0"));
    let buffer = host.memory.allocate(4096).iova;
    until("it is paused again", || is_paused(&target, "s0/1"));
    submit(&mut host, MEMORY, buffer);
    submit(&mut host, DISK, buffer);
    completes(&mut host);
    assert!(host.poll(0).is_none(), "nor does the next client get on");
    ok(&target, &["namespace", "resume", "s0/1"]);
    completes(&mut host);
    assert!(refused(&target, &["namespace", "pause", "s0/1", "--etag", "0"]).contains("s0"));
    assert!(refused(&target, &["namespace", "pause", "s0/9"]).contains("not there"));
}

#[test]
fn a_pause_outlives_a_frontend_that_starts_anew() {
    let target = start();
    ok(&target, &["namespace", "pause", "s0/1"]);
    ok(&target, &["namespace", "pause", "s0/2", "--max", "1h"]);
    ok(&target, &["controller", "pause", "vm2"]);
    ok(&target, &["namespace", "resume", "s0/2"]);
    target.kill_and_await_successor("f0");
    until("it is paused again", || is_paused(&target, "s0/1"));
    until("and so is the controller", || {
        let shown = json(&target, &["controller", "get", "vm2"]);
        shown["pause_state"] == "PAUSE_STATE_PAUSED"
    });
    until("what was resumed runs", || is_running(&target, "s0/2"));
    let mut host = Host::connect(target.socket("vm0"));
    let buffer = host.memory.allocate(4096).iova;
    until("nothing of it is in flight", || is_paused(&target, "s0/1"));
    submit(&mut host, MEMORY, buffer);
    submit(&mut host, DISK, buffer);
    completes(&mut host);
    assert!(host.poll(0).is_none(), "the next client does not get on");
    ok(&target, &["namespace", "resume", "s0/1"]);
    completes(&mut host);
}
