//! Faults that an administrator has injected, as hosts see them.

use std::thread;
use std::time::{Duration, Instant};

use nvme_spec::{Lba, Nsid, Status};
use serde_json::Value;
use vireo_tests::admin_client::{json, ok, refused};
use vireo_tests::host::Host;
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::until;

/// A lease (1), a ring of a file (2), a ring of memory (3).
fn target() -> Target {
    Target::start(&configuration(
        "[api]\nfault_injection = true\n\
         [[bdev]]\nname = \"lease\"\ndriver = \"malloc\"\nsize = \"16MiB\"\n\
         [[bdev]]\nname = \"file\"\ndriver = \"file\"\npath = \"@DIR@/disk\"\ncreate = true\n\
         size = \"16MiB\"\ndirect = false\n\
         [[bdev]]\nname = \"ring\"\ndriver = \"malloc\"\nsize = \"16MiB\"\nchannel = \"ring\"\n\
         [[subsystem]]\nname = \"s0\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"lease\"\n\
         [[subsystem.namespace]]\nnsid = 2\nbdev = \"file\"\n\
         [[subsystem.namespace]]\nnsid = 3\nbdev = \"ring\"\n\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n",
    ))
}

/// The faults as the API tells them.
fn list(target: &Target) -> Vec<Value> {
    let list = json(target, &["fault", "list"]);
    list.as_array().expect("a list").clone()
}

fn write(host: &mut Host, nsid: u32, lba: u64) -> Result<(), Status> {
    host.write(Nsid(nsid), Lba(lba), &[5; 512], 512).map_err(|status| status.code())
}

fn read(host: &mut Host, nsid: u32, lba: u64) -> Result<(), Status> {
    host.read(Nsid(nsid), Lba(lba), 1, 512).map(drop).map_err(|status| status.code())
}

#[test]
fn a_host_sees_exactly_the_faults_by_lease_and_by_ring() {
    let target = target();
    let mut host = Host::connect(target.socket("vm0"));
    for (nsid, volume) in [(1, "lease"), (2, "file"), (3, "ring")] {
        let fault = ["fault", "create", volume, "--name", "bad", "--operation", "write"];
        let at =
            ["--first-lba", "64", "--lba-count", "8", "--next", "2", "--status", "media-error"];
        assert_eq!(write(&mut host, nsid, 64), Ok(()), "{volume}");
        ok(&target, &[&fault[..], &at].concat());
        assert_eq!(write(&mut host, nsid, 63), Ok(()), "before the range");
        assert_eq!(write(&mut host, nsid, 72), Ok(()), "behind it");
        assert_eq!(read(&mut host, nsid, 64), Ok(()), "another operation");
        assert_eq!(write(&mut host, nsid, 64), Err(Status::WRITE_FAULT), "{volume}");
        assert_eq!(write(&mut host, nsid, 71), Err(Status::WRITE_FAULT), "{volume}");
        assert_eq!(write(&mut host, nsid, 64), Ok(()), "it was for two");
        let other = ["fault", "create", volume, "--every", "3", "--status", "internal-error"];
        ok(&target, &[&other[..], &["--name", "third", "--operation", "read"]].concat());
        let results: Vec<bool> = (0..6).map(|_| read(&mut host, nsid, 0).is_ok()).collect();
        assert_eq!(results, [true, true, false, true, true, false], "{volume}");
        let faults = list(&target);
        let names: Vec<&str> = faults.iter().filter_map(|fault| fault["name"].as_str()).collect();
        let expected = ["bad", "third"].map(|name| format!("volumes/{volume}/faults/{name}"));
        assert_eq!(names, expected);
        let numbers =
            |fault: &Value| [fault["seen_count"].clone(), fault["injected_count"].clone()];
        assert_eq!(numbers(&faults[0]), ["3", "2"]);
        assert_eq!(numbers(&faults[1]), ["6", "2"]);
        assert_eq!(
            (&*faults[0]["first_lba"].to_string(), &faults[0]["lba_count"]),
            ("\"64\"", &"8".into())
        );
        assert_eq!(ok(&target, &["fault", "delete", &format!("{volume}/-")]), "2 deleted\n");
        assert!((0..6).all(|_| read(&mut host, nsid, 0).is_ok()), "nothing is left");
        assert!(list(&target).is_empty());
    }
}

#[test]
fn what_hangs_goes_on_when_the_fault_is_deleted_and_delays_delay() {
    let target = target();
    let mut host = Host::connect(target.socket("vm0"));
    ok(
        &target,
        &["fault", "create", "lease", "--name", "late", "--every", "1", "--delay", "300ms"],
    );
    let start = Instant::now();
    assert_eq!(read(&mut host, 1, 0), Ok(()));
    // By the worker's clock, which is that of its last look at it.
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    ok(&target, &["fault", "delete", "lease/late"]);
    for (nsid, volume) in [(1, "lease"), (2, "file")] {
        ok(&target, &["fault", "create", volume, "--name", "stuck", "--next", "1", "--hang", "5m"]);
        let hung = thread::spawn(move || {
            let result = read(&mut host, nsid, 0);
            (host, result)
        });
        until("it hangs", || list(&target).first().is_some_and(|f| f["injected_count"] == "1"));
        assert!(!hung.is_finished());
        ok(&target, &["fault", "delete", &format!("{volume}/stuck")]);
        let result;
        (host, result) = hung.join().expect("the thread ends");
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn faults_hold_for_a_worker_that_starts_anew_and_end_with_the_manager() {
    let target = target();
    ok(&target, &["fault", "create", "lease", "--every", "1", "--status", "capacity-exceeded"]);
    target.kill_and_await_successor("w0");
    until("the successor knows", || {
        let mut host = Host::connect(target.socket("vm0"));
        read(&mut host, 1, 0) == Err(Status::CAPACITY_EXCEEDED)
    });
    target.kill_and_await_successor("m0");
    until("they end", || {
        let mut host = Host::connect(target.socket("vm0"));
        read(&mut host, 1, 0) == Ok(())
    });
}

#[test]
fn faults_are_refused_where_the_configuration_does_not_allow_them() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let create = ["fault", "create", "mem0", "--every", "1", "--status", "media-error"];
    for arguments in [&create[..], &["fault", "list"], &["fault", "delete", "mem0/-"]] {
        let line = refused(&target, arguments);
        assert!(line.contains("fault_injection = true") && line.lines().count() == 1, "{line}");
    }
    let mut host = Host::connect(target.socket("vm0"));
    assert_eq!(read(&mut host, 1, 0), Ok(()));
}
