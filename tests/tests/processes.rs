//! Processes that die, and configurations that change, under `vireo up`.

use nix::sys::signal::{Signal, kill};
use nvme_spec::identify::Cns;
use nvme_spec::{Lba, Nsid};
use std::sync::atomic::{AtomicBool, Ordering};
use vireo_tests::host::{Host, Neighbour};
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::{despite_stalls, until};

const NSID: Nsid = Nsid(1);
/// Behind the blocks of a neighbour that begins at 0: the endpoints share the namespace.
const BESIDE: Lba = Lba(8192);

/// The next client of the endpoint works.
#[track_caller]
fn next_client_works(target: &Target, endpoint: &str) {
    let mut host = Host::connect(target.socket(endpoint));
    host.write(NSID, BESIDE, &[0x3C; 4096], 512).expect("write");
    assert!(host.read(NSID, BESIDE, 8, 512).expect("read") == [0x3C; 4096]);
}

#[test]
fn a_target_starts_serves_and_stops() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    next_client_works(&target, "vm0");
    next_client_works(&target, "vm0");
    let socket = target.socket("vm0");
    assert!(target.stop().success());
    assert!(!socket.exists(), "a socket that nobody serves is gone");
}

#[test]
fn a_killed_worker_is_replaced_and_the_next_client_works() {
    let target = Target::start(&one_memory_namespace(&["vm0", "vm1"]));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(0), &[1; 512], 512).unwrap();
    target.kill_and_await_successor("w0");
    // The host of the controller whose queues are gone sees that it failed, and resets it.
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    until("the successor serves", || target.site().vireo(&["status"]).status.success());
    host.enable();
    host.create_queues(1, 64);
    assert!(host.read(NSID, Lba(0), 1, 512).expect("read") == [1; 512]);
    next_client_works(&target, "vm1");
}

#[test]
fn a_killed_backend_is_replaced_and_memory_keeps_its_data() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(7), &[0x77; 1024], 512).unwrap();
    target.kill_and_await_successor("b0");
    // The client that is there goes on, sooner or later, without a reset.
    host.wait("the namespace is served again", |host| host.read(NSID, Lba(7), 2, 512).ok());
    assert!(host.read(NSID, Lba(7), 2, 512).unwrap() == [0x77; 1024], "data in memory survives");
    host.write(NSID, Lba(8), &[0x78; 512], 512).expect("write");
    drop(host);
    let mut host = Host::connect(target.socket("vm0"));
    assert!(host.read(NSID, Lba(7), 1, 512).unwrap() == [0x77; 512]);
    assert!(host.read(NSID, Lba(8), 1, 512).unwrap() == [0x78; 512]);
}

#[test]
fn no_command_fails_while_a_backend_is_killed() {
    // Served by the backend itself; a memory device keeps its data over that.
    let tables =
        one_memory_namespace(&["vm0"]).replace("\"64MiB\"\n", "\"64MiB\"\nchannel = \"ring\"\n");
    despite_stalls(|| {
        let target = Target::start(&tables);
        let mut host = Host::connect(target.socket("vm0"));
        let mut rounds = 0_u64;
        for _ in 0..3 {
            let killed = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    target.kill_and_await_successor("b0");
                    killed.store(true, Ordering::Release);
                });
                let mut after = 0;
                while after < 100 {
                    let (lba, data) = (Lba(rounds % 512 * 8), [rounds as u8; 4096]);
                    host.write(NSID, lba, &data, 512).expect("write");
                    assert!(host.read(NSID, lba, 8, 512).expect("read") == data);
                    rounds += 1;
                    after += u64::from(killed.load(Ordering::Acquire));
                }
            });
        }
    });
}

#[test]
fn a_killed_frontend_is_replaced_and_the_next_client_works() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(3), &[0x33; 512], 512).unwrap();
    drop(host);
    target.kill_and_await_successor("f0");
    until("the endpoint is back", || {
        std::os::unix::net::UnixStream::connect(target.socket("vm0")).is_ok()
    });
    let mut host = Host::connect(target.socket("vm0"));
    assert!(host.read(NSID, Lba(3), 1, 512).unwrap() == [0x33; 512]);
}

#[test]
fn a_killed_manager_is_replaced_and_nobody_notices() {
    let target = Target::start(&one_memory_namespace(&["vm0", "vm1"]));
    let neighbour = Neighbour::start(target.socket("vm0"), NSID, Lba(0));
    target.kill_and_await_successor("m0");
    neighbour.goes_on();
    target.await_all_ready();
    next_client_works(&target, "vm1");
    target.reload_ok(&one_memory_namespace(&["vm0", "vm1"]));
    neighbour.finish();
}

#[test]
fn services_outlive_their_keeper_and_a_new_one_adopts_them() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let neighbour = Neighbour::start(target.socket("vm0"), NSID, Lba(0));
    let worker = target.pid("w0");
    kill(target.supervisor(), Signal::SIGKILL).unwrap();
    neighbour.goes_on();
    let target = target.start_another_keeper();
    assert_eq!(target.pid("w0"), worker, "the worker was adopted, not started anew");
    neighbour.goes_on();
    neighbour.finish();
    assert!(target.stop().success());
}

#[test]
fn a_keeper_whose_terminal_is_gone_keeps_on_and_stops_when_told() {
    let mut target = Target::start(&one_memory_namespace(&["vm0"]));
    target.close_terminal();
    target.kill_and_await_successor("w0");
    target.await_all_ready();
    next_client_works(&target, "vm0");
    assert!(target.is_running());
    assert!(target.stop().success());
}

#[test]
fn all_die_again_and_again_and_the_next_client_works() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    for _ in 0..3 {
        for name in ["w0", "b0", "f0", "m0"] {
            target.kill_and_await_successor(name);
        }
    }
    target.await_all_ready();
    next_client_works(&target, "vm0");
}

#[test]
fn namespaces_are_added_grown_and_removed_under_a_client() {
    let tables = |size: &str, more: &str| {
        configuration(&format!(
            "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"{size}\"\n\
             [[bdev]]\nname = \"mem1\"\ndriver = \"malloc\"\nsize = \"16MiB\"\n\
             [[subsystem]]\nname = \"s0\"\nserial = \"S\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n{more}\
             [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n"
        ))
    };
    let second = "[[subsystem.namespace]]\nnsid = 2\nbdev = \"mem1\"\n";
    let target = Target::start(&tables("16MiB", ""));
    let mut host = Host::connect(target.socket("vm0"));
    host.write(NSID, Lba(0), &[9; 512], 512).unwrap();
    assert!(host.read(Nsid(2), Lba(0), 1, 512).is_err());

    target.reload_ok(&tables("16MiB", second));
    host.wait("the new namespace", |host| host.read(Nsid(2), Lba(0), 1, 512).ok());
    let active = host.identify(Cns::ACTIVE_NAMESPACES, Nsid(0));
    assert_eq!(active[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);

    target.reload_ok(&tables("32MiB", second));
    let last = Lba((32 << 20) / 512 - 1);
    host.wait("the new blocks", |host| host.write(NSID, last, &[8; 512], 512).ok());
    let blocks = host.identify(Cns::NAMESPACE, NSID);
    assert_eq!(u64::from_le_bytes(blocks[..8].try_into().unwrap()), last.0 + 1);
    assert!(host.read(NSID, Lba(0), 1, 512).unwrap() == [9; 512], "what was there stays");

    target.reload_ok(&tables("32MiB", ""));
    host.wait("the namespace is gone", |host| {
        host.read(Nsid(2), Lba(0), 1, 512).is_err().then_some(())
    });
    assert!(host.read(NSID, last, 1, 512).unwrap() == [8; 512]);
}

#[test]
fn a_bad_reload_is_refused_and_changes_nothing() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let neighbour = Neighbour::start(target.socket("vm0"), NSID, Lba(0));
    let broken = one_memory_namespace(&["vm0"]).replace("\"64MiB\"", "1000");
    let output = target.reload(&broken);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("bdev[0].size"), "{text}");
    let shrunk = one_memory_namespace(&["vm0"]).replace("\"64MiB\"", "\"16MiB\"");
    let output = target.reload(&shrunk);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("mem0"), "a device is not shrunk: {text}");
    target.reload_ok(&one_memory_namespace(&["vm0"]));
    neighbour.finish();
}

#[test]
fn endpoints_come_and_go_by_reload() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let neighbour = Neighbour::start(target.socket("vm0"), NSID, Lba(0));
    target.reload_ok(&one_memory_namespace(&["vm0", "vm1"]));
    until("the new endpoint", || target.socket("vm1").exists());
    next_client_works(&target, "vm1");
    target.reload_ok(&one_memory_namespace(&["vm0"]));
    until("the endpoint is gone", || !target.socket("vm1").exists());
    neighbour.finish();
}
