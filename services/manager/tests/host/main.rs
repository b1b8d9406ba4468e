//! The manager against processes that note what they are told.

mod fake;

use fake::{Host, Managed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vireo_proto::handoff::ApplyFailure;

const NAMESPACE: &str = "[[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n";
const BDEV: &str = "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\n";
const ENDPOINT: &str = "[[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n";

fn failure(object: &str, message: &str) -> ApplyFailure {
    ApplyFailure { object: object.into(), message: message.into() }
}

/// Waits for something that comes without being asked for.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < fake::PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A manager on a host whose processes were told everything.
async fn started() -> (Host, std::collections::BTreeMap<String, Arc<fake::Fake>>, Managed) {
    let (host, fakes) = Host::start();
    let managed = host.manage().await;
    managed.reached().await;
    (host, fakes, managed)
}

fn state(host: &Host) -> String {
    std::fs::read_to_string(host.path("state/manager.json")).unwrap()
}

#[tokio::test]
async fn backends_are_told_before_frontends() {
    let (host, fakes) = Host::start();
    *fakes["b1"].delay.lock().unwrap() = Duration::from_millis(200);
    let managed = host.manage().await;
    managed.reached().await;
    let mut told = host.told();
    told[..2].sort();
    told[2..].sort();
    assert_eq!(told, ["b0: mem0", "b1: mem1", "f0: s0/1 vm0", "f1: s1/1 vm1"]);
    let status = managed.status().await;
    assert!(status.ready, "{status:?}");
    let names: Vec<_> = status.processes.iter().map(|process| process.name.as_str()).collect();
    assert_eq!(names, ["b0", "b1", "w0", "f0", "f1", "m0"]);
    assert_eq!(managed.manager.line(), "all is served as configured");
}

#[tokio::test]
async fn a_process_that_comes_again_is_told_again_and_nobody_else() {
    let (mut host, _fakes, managed) = started().await;
    for (name, line) in [("b1", "b1: mem1"), ("f0", "f0: s0/1 vm0")] {
        host.told();
        host.kill(name).await;
        managed.until("its absence is seen", |progress| !progress.reached()).await;
        host.run(name);
        managed.reached().await;
        assert_eq!(host.told(), [line]);
    }
}

#[tokio::test]
async fn a_process_that_comes_again_at_once_is_told_again_and_nobody_else() {
    let (mut host, _fakes, managed) = started().await;
    for (name, line) in [("b1", "b1: mem1"), ("f0", "f0: s0/1 vm0"), ("b0", "b0: mem0")] {
        host.told();
        host.kill(name).await;
        host.run(name);
        until("it is told again", || host.has_told(line)).await;
        managed.reached().await;
        assert_eq!(host.told(), [line]);
    }
}

#[tokio::test]
async fn frontends_do_not_wait_for_ever_for_a_backend_that_is_away() {
    let (mut host, _fakes) = Host::start();
    host.kill("b1").await;
    let managed = host.manage().await;
    let progress = managed.until("it is settled", |progress| progress.settled).await;
    assert_eq!(progress.failures, ["backend b1: is not there"]);
    let mut told = host.told();
    told.sort();
    assert_eq!(told, ["b0: mem0", "f0: s0/1 vm0", "f1: s1/1 vm1"]);
    let status = managed.status().await;
    assert!(!status.ready);
    assert_eq!(status.failures, ["backend b1: is not there"]);
    assert_eq!((status.processes[1].ready, status.processes[1].pid), (false, 0));
    host.run("b1");
    managed.reached().await;
    assert!(managed.status().await.ready);
}

#[tokio::test]
async fn failures_are_told_and_tried_again_until_they_are_gone() {
    let (host, fakes) = Host::start();
    *fakes["f1"].failures.lock().unwrap() = vec![failure("endpoint vm1", "path is taken")];
    *fakes["b0"].failures.lock().unwrap() = vec![failure("bdev mem0", "no memory")];
    let managed = host.manage().await;
    let failures = managed.until("it is settled", |progress| progress.settled).await.failures;
    let expected = ["backend b0: bdev mem0: no memory", "frontend f1: endpoint vm1: path is taken"];
    assert_eq!(failures, expected);
    assert_eq!(managed.status().await.failures, expected);
    assert_eq!(managed.manager.line(), "backend b0: bdev mem0: no memory (and 1 more)");
    let again = managed.reload().await.unwrap();
    assert_eq!((again.changes.len(), again.failures), (0, failures), "a reload tells them too");
    host.told();
    until("f1 is told again", || host.has_told("f1: s1/1 vm1")).await;
    until("b0 is told again", || host.has_told("b0: mem0")).await;
    assert!(!host.has_told("b1: mem1"), "nothing failed there");
    fakes["f1"].failures.lock().unwrap().clear();
    fakes["b0"].failures.lock().unwrap().clear();
    managed.reached().await;
}

#[tokio::test]
async fn what_is_new_goes_from_the_bdev_to_the_endpoint() {
    let (host, fakes, managed) = started().await;
    let old = fakes["f0"].targets.lock().unwrap().clone();
    host.told();
    let bdev = format!("[[bdev]]\nname = \"mem2\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n{BDEV}");
    let namespace = format!("{NAMESPACE}[[subsystem.namespace]]\nnsid = 2\nbdev = \"mem2\"\n");
    host.edit(&[(BDEV, &bdev), (NAMESPACE, &namespace), ("64MiB", "128MiB")]);
    let result = managed.reload().await.unwrap();
    let changes =
        ["bdev mem2 added", "bdev mem0 grown from 64MiB to 128MiB", "namespace 2 of s0 added"];
    assert_eq!(result.changes, changes);
    assert_eq!(result.failures, [""; 0]);
    assert_eq!(host.told(), ["b0: mem2 mem0", "f0: s0/1 s0/2 vm0"]);
    let new = fakes["f0"].targets.lock().unwrap().clone();
    let (before, after) = (&old.subsystems[0], &new.subsystems[0]);
    assert_eq!(before.nqn, after.nqn);
    assert_eq!(before.namespaces[0].uuid, after.namespaces[0].uuid);
    assert_eq!(after.namespaces[0].size_bytes, 128 << 20);
}

#[tokio::test]
async fn what_is_removed_goes_from_the_endpoint_to_the_bdev() {
    let (host, fakes, managed) = started().await;
    host.told();
    *fakes["f0"].delay.lock().unwrap() = Duration::from_millis(200);
    host.edit(&[(NAMESPACE, ""), (BDEV, ""), (ENDPOINT, "")]);
    let result = managed.reload().await.unwrap();
    assert_eq!(
        result.changes,
        ["endpoint vm0 removed", "namespace 1 of s0 removed", "bdev mem0 removed"]
    );
    assert_eq!(result.failures, [""; 0]);
    assert_eq!(host.told(), ["f0: ", "b0: "], "the bdev outlives its namespace");
    until("the old configuration is forgotten", || !state(&host).contains("leaving")).await;
}

#[tokio::test]
async fn a_bdev_stays_until_its_frontend_has_let_go_of_it() {
    let (mut host, fakes, managed) = started().await;
    // One that has not done it says so.
    *fakes["f0"].failures.lock().unwrap() = vec![failure("namespace 1", "still in use")];
    host.told();
    host.edit(&[(NAMESPACE, ""), (BDEV, "")]);
    let result = managed.reload().await.unwrap();
    let stays = "bdev mem0: stays until frontend f0 has let go of it";
    assert_eq!(result.failures, ["frontend f0: namespace 1: still in use", stays]);
    assert!(!host.told().iter().any(|line| line.starts_with("b0")));
    // Another bdev of its name cannot come meanwhile, the same can.
    host.edit(&[("64MiB", "32MiB")]);
    let error = managed.reload().await.unwrap_err();
    assert!(error.contains("bdev mem0 is still being removed"), "{error}");
    // Neither the frontend's death proves anything nor does the manager forget.
    host.kill("f0").await;
    managed.kill().await;
    host.edit(&[(NAMESPACE, ""), (BDEV, "")]);
    host.told();
    let managed = host.manage().await;
    let failures = managed.until("it is settled", |progress| progress.settled).await.failures;
    assert_eq!(failures, ["frontend f0: is not there", stays]);
    assert!(host.told().contains(&"b0: mem0".to_owned()), "the bdev is still wanted of it");
    host.run("f0");
    managed.reached().await;
    assert_eq!(host.told(), ["f0: vm0", "b0: "]);
    until("the old configuration is forgotten", || !state(&host).contains("leaving")).await;
}

#[tokio::test]
async fn the_same_file_twice_changes_nothing() {
    let (host, _fakes, managed) = started().await;
    host.told();
    let before = state(&host);
    let result = managed.reload().await.unwrap();
    assert_eq!((result.changes.len(), result.failures.len()), (0, 0));
    host.edit(&[("64MiB", "128MiB")]);
    assert_eq!(managed.reload().await.unwrap().changes.len(), 1);
    let between = state(&host);
    assert_ne!(before, between);
    assert_eq!(managed.reload().await.unwrap().changes.len(), 0);
    assert_eq!(state(&host), between);
    assert_eq!(host.told().len(), 2, "one backend and one frontend, once");
}

#[tokio::test]
async fn a_file_with_a_mistake_or_with_too_much_changes_nothing() {
    let (host, _fakes, managed) = started().await;
    host.told();
    let before = state(&host);
    host.edit(&[("nsid = 1\n", "nsid = 1\nsise = 2\n"), (ENDPOINT, "")]);
    let error = managed.reload().await.unwrap_err();
    assert!(error.contains("subsystem[0].namespace[0].sise: unknown key"), "{error}");
    host.edit(&[("subsystem = \"s1\"", "subsystem = \"s1\"\nqueues = 3"), (ENDPOINT, "")]);
    let error = managed.reload().await.unwrap_err();
    assert!(error.contains("queues of endpoint vm1 cannot change while running: "), "{error}");
    std::fs::remove_file(host.path("vireo.toml")).unwrap();
    let error = managed.reload().await.unwrap_err();
    assert!(error.contains("cannot be read"), "{error}");
    assert_eq!(state(&host), before);
    assert_eq!(host.told(), [""; 0]);
    assert!(managed.status().await.ready);
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_done() {
    let (host, _fakes, managed) = started().await;
    host.told();
    std::fs::create_dir(host.path("state/manager.json.new")).unwrap();
    host.edit(&[("64MiB", "128MiB")]);
    let error = managed.reload().await.unwrap_err();
    assert!(error.contains("write "), "{error}");
    assert_eq!(host.told(), [""; 0]);
    std::fs::remove_dir(host.path("state/manager.json.new")).unwrap();
    assert_eq!(managed.reload().await.unwrap().changes.len(), 1);
}

#[tokio::test]
async fn a_second_reload_waits_for_the_first() {
    let (host, fakes, managed) = started().await;
    *fakes["b0"].delay.lock().unwrap() = Duration::from_millis(300);
    host.edit(&[("64MiB", "128MiB")]);
    let (start, before) = (Instant::now(), state(&host));
    let second = async {
        until("the first is under way", || state(&host) != before).await;
        host.edit(&[("64MiB", "256MiB")]);
        (managed.reload().await.unwrap(), start.elapsed())
    };
    let first = async { (managed.reload().await.unwrap(), start.elapsed()) };
    let ((first, first_done), (second, second_done)) = tokio::join!(first, second);
    assert_eq!(first.changes, ["bdev mem0 grown from 64MiB to 128MiB"]);
    assert_eq!(second.changes, ["bdev mem0 grown from 128MiB to 256MiB"]);
    assert!(first_done < second_done, "{first_done:?} {second_done:?}");
}

#[tokio::test]
async fn a_file_bdev_grows_by_what_its_backend_says() {
    let (host, fakes) = Host::start();
    let file = host.path("disk");
    std::fs::write(&file, vec![0; 8192]).unwrap();
    let bdev = |size: &str| {
        format!(
            "[[bdev]]\nname = \"mem0\"\ndriver = \"file\"\npath = \"{}\"\n{size}",
            file.display()
        )
    };
    host.edit(&[(BDEV, &bdev(""))]);
    let managed = host.manage().await;
    managed.reached().await;
    fakes["b0"].sizes.lock().unwrap().insert("mem0".into(), 8192);
    host.edit(&[(BDEV, &bdev("size = 4096\n"))]);
    let error = managed.reload().await.unwrap_err();
    assert!(error.contains("size of bdev mem0 cannot shrink from 8KiB to 4KiB"), "{error}");
    std::fs::write(&file, vec![0; 16384]).unwrap();
    host.edit(&[(BDEV, &bdev("size = 16384\n"))]);
    assert_eq!(managed.reload().await.unwrap().changes, ["bdev mem0 grown from 8KiB to 16KiB"]);
    assert_eq!(fakes["f0"].targets.lock().unwrap().subsystems[0].namespaces[0].size_bytes, 16384);
}

#[tokio::test]
async fn names_outlive_the_manager() {
    let (host, fakes, managed) = started().await;
    let before = fakes["f0"].targets.lock().unwrap().clone();
    managed.kill().await;
    *fakes["f0"].targets.lock().unwrap() = Default::default();
    let managed = host.manage().await;
    managed.reached().await;
    assert_eq!(*fakes["f0"].targets.lock().unwrap(), before);
    assert!(before.subsystems[0].nqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
}

#[tokio::test]
async fn a_manager_that_comes_again_does_not_change_what_guests_run_on() {
    let (mut host, _fakes, managed) = started().await;
    managed.kill().await;
    host.edit(&[("subsystem = \"s1\"", "subsystem = \"s1\"\nqueues = 3")]);
    let managed = host.manage().await;
    managed.reached().await;
    let line = managed.manager.line();
    assert!(
        line.contains("the configuration file is not served: queues of endpoint vm1"),
        "{line}"
    );
    let status = managed.status().await;
    assert!(!status.ready);
    assert_eq!(status.failures, [line]);
    assert_eq!(managed.manager.config().endpoints[1].queues, 64);
    // The file says again what is served.
    host.edit(&[]);
    managed.reload().await.unwrap();
    assert!(managed.status().await.ready);
    managed.kill().await;
    // All processes start anew: nothing runs on the old configuration.
    host.edit(&[
        ("subsystem = \"s1\"", "subsystem = \"s1\"\nqueues = 3"),
        (NAMESPACE, ""),
        (BDEV, ""),
    ]);
    for name in ["b0", "b1", "f0", "f1"] {
        host.kill(name).await;
        host.run(name);
    }
    host.told();
    let managed = host.manage().await;
    managed.reached().await;
    assert_eq!(managed.manager.config().endpoints[1].queues, 3);
    assert!(host.told().contains(&"b0: ".to_owned()), "and nothing is held");
}

#[tokio::test]
async fn a_silent_process_does_not_hold_the_status_up() {
    let (host, fakes, managed) = started().await;
    *fakes["w0"].delay.lock().unwrap() = Duration::from_secs(3600);
    let start = Instant::now();
    let status = managed.status().await;
    assert!(start.elapsed() < fake::PATIENCE / 2);
    assert!(!status.ready);
    let silent = &status.processes[2];
    assert_eq!((silent.name.as_str(), silent.ready), ("w0", false));
    assert!(silent.message.contains("no answer"), "{silent:?}");
    assert!(
        status.processes.iter().filter(|p| p.name != "w0").all(|p| p.ready),
        "{host:?}",
        host = host.told()
    );
}
