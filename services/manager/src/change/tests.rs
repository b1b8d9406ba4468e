//! What may change beside what may not.

use super::*;
use crate::sample;

const ADD: &str = "[[subsystem]]\nname = \"s0\"\n";

fn changes(edits: &[(&str, &str)]) -> Result<Vec<String>, Vec<String>> {
    let old = sample::desired(sample::config(&[]));
    compare(&old, &sample::config(edits), &Sizes::new())
}

#[track_caller]
fn allowed(edits: &[(&str, &str)], lines: &[&str]) {
    assert_eq!(changes(edits).expect("is allowed"), lines);
}

#[track_caller]
fn refused(edits: &[(&str, &str)], line: &str) {
    let lines = changes(edits).expect_err("is refused");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with(line), "{lines:?} does not begin with {line:?}");
    assert!(lines[0].contains("while running: "), "says what to do: {lines:?}");
    assert!(!lines[0].contains('\n'));
}

#[test]
fn the_same_is_no_change_however_it_is_written() {
    allowed(&[], &[]);
    allowed(&[("size = \"64MiB\"", "size = 67108864")], &[]);
    allowed(&[("name = \"w1\"", "name = \"w1\"\nmax_nap = \"500us\"")], &[]);
    // The order of the file means nothing.
    let edits = [
        ("[[worker]]\nname = \"w1\"\n", ""),
        ("core = 1\n", "core = 1\n[[worker]]\nname = \"w1\"\n"),
    ];
    allowed(&edits, &[]);
    let edits = [
        ("[[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n", ""),
        (
            "bdev = \"null0\"\n",
            "bdev = \"null0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n",
        ),
    ];
    allowed(&edits, &[]);
}

#[test]
fn the_nqn_that_was_made_may_be_written_down() {
    let old = sample::desired(sample::config(&[]));
    let made = format!("serial = \"SN0\"\nnqn = \"{}\"", old.identities.subsystems["s0"]);
    let same = sample::config(&[("serial = \"SN0\"", &made)]);
    assert_eq!(compare(&old, &same, &Sizes::new()), Ok(Vec::new()));
    refused(
        &[("serial = \"SN0\"", "serial = \"SN0\"\nnqn = \"nqn.2024-01.org.example:s0\"")],
        "nqn of subsystem s0",
    );
    refused(&[("nqn = \"nqn.2024-01.org.example:s1\"\n", "")], "nqn of subsystem s1");
}

#[test]
fn the_uuid_that_was_made_may_be_written_down() {
    const MEM0: &str = "bdev = \"mem0\"\n";
    let old = sample::desired(sample::config(&[]));
    let uuid = |nsid: u32| {
        let subsystem = old.config.subsystem("s0").unwrap();
        let namespace = subsystem.namespaces.iter().find(|n| n.nsid == nsid).unwrap();
        old.identities.uuid(subsystem, namespace).unwrap()
    };
    let written = |uuid: &str| format!("{MEM0}uuid = \"{uuid}\"\n");
    let same = sample::config(&[(MEM0, &written(&uuid(1).to_string()))]);
    assert_eq!(compare(&old, &same, &Sizes::new()), Ok(Vec::new()));
    let other = written("123e4567-e89b-42d3-a456-426614174000");
    refused(&[(MEM0, &other)], "uuid of namespace 1 of s0");
    // One that another namespace was given by us.
    let added = format!("[[subsystem.namespace]]\nnsid = 9\n{}", written(&uuid(7).to_string()));
    let added = added.replace("mem0", "mem1");
    let bdev = format!("[[bdev]]\nname = \"mem1\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n{ADD}");
    let before = "[[subsystem.namespace]]\nnsid = 1\n";
    let new = sample::config(&[(ADD, &bdev), (before, &format!("{added}{before}"))]);
    let lines = compare(&old, &new, &Sizes::new()).unwrap_err();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("have the same uuid"), "{lines:?}");

    // Taken from the file where there is one, and kept when the key goes.
    let given = sample::desired(sample::config(&[(MEM0, &other)]));
    let subsystem = given.config.subsystem("s0").unwrap();
    let told = given.identities.uuid(subsystem, &subsystem.namespaces[0]).unwrap();
    assert_eq!(told.to_string(), "123e4567-e89b-42d3-a456-426614174000");
    let lines = compare(&given, &sample::config(&[]), &Sizes::new()).unwrap_err();
    assert!(lines[0].starts_with("uuid of namespace 1 of s0"), "{lines:?}");
}

#[test]
fn bdevs_come_grow_and_go() {
    let bdev = format!("[[bdev]]\nname = \"mem1\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n{ADD}");
    allowed(&[(ADD, &bdev)], &["bdev mem1 added"]);
    allowed(&[("\"64MiB\"", "\"128MiB\"")], &["bdev mem0 grown from 64MiB to 128MiB"]);
    refused(&[("\"64MiB\"", "\"32MiB\"")], "size of bdev mem0 cannot shrink from 64MiB to 32MiB");
    refused(&[("block_size = 4096\n", "")], "block_size of bdev mem0");
    refused(&[("driver = \"malloc\"", "driver = \"null\"")], "driver of bdev mem0");
    refused(&[("latency = \"10us\"\n", "")], "null settings of bdev null0");
    refused(&[("/data/file0", "/data/file1")], "file settings of bdev file0");
    refused(&[("direct = false\n", "")], "file settings of bdev file0");
    refused(&[("channel = \"ring\"\n", "")], "channel of bdev null0");
    refused(&[("backend = \"b1\"\n", "")], "backend of bdev null0");
}

#[test]
fn a_file_that_gets_a_size_of_its_own_may_grow_by_it_but_not_shrink() {
    let old = sample::desired(sample::config(&[]));
    let new = sample::config(&[("direct = false", "direct = false\nsize = \"8MiB\"")]);
    let asked: Vec<_> = sized_anew(&old.config, &new).collect();
    assert_eq!(asked, [("file0", "b0")]);
    let compare =
        |mebibytes: u64| compare(&old, &new, &Sizes::from([("file0".to_owned(), mebibytes << 20)]));
    assert_eq!(compare(4).unwrap(), ["bdev file0 grown from 4MiB to 8MiB"]);
    assert_eq!(compare(8).unwrap(), [""; 0]);
    assert!(compare(16).unwrap_err()[0].starts_with("size of bdev file0 cannot shrink"));
    refused(&[("direct = false", "direct = false\nsize = \"8MiB\"")], "size of bdev file0");
    let back = super::compare(&sample::desired(new), &old.config, &Sizes::new());
    assert!(back.unwrap_err()[0].starts_with("size of bdev file0 cannot change"));
}

#[test]
fn subsystems_and_namespaces_come_and_go() {
    let namespace = "[[bdev]]\nname = \"m\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n[[subsystem]]\nname = \"s0\"\n";
    let more = "nsid = 2\nbdev = \"file0\"\n[[subsystem.namespace]]\nnsid = 3\nbdev = \"m\"\n";
    let edits = [(ADD, namespace), ("nsid = 2\nbdev = \"file0\"\n", more)];
    allowed(&edits, &["bdev m added", "namespace 3 of s1 added"]);
    let one = "[[subsystem.namespace]]\nnsid = 7\nbdev = \"null0\"\n";
    allowed(&[(one, "")], &["namespace 7 of s0 removed"]);
    let subsystem = "[[subsystem]]\nname = \"s2\"\n[[subsystem.namespace]]\nnsid = 7\nbdev = \"null0\"\n[[endpoint]]\nname = \"vm2\"\nsubsystem = \"s2\"\n[[endpoint]]\nname = \"vm0\"\n";
    let edits = [(one, ""), ("[[endpoint]]\nname = \"vm0\"\n", subsystem)];
    let lines = [
        "subsystem s2 added",
        "namespace 7 of s2 added",
        "endpoint vm2 added",
        "namespace 7 of s0 removed",
    ];
    allowed(&edits, &lines);
    let other = [
        ("[[subsystem.namespace]]\nnsid = 2\nbdev = \"file0\"\n", ""),
        ("nsid = 7\nbdev = \"null0\"\n", "nsid = 7\nbdev = \"file0\"\n"),
    ];
    let lines = changes(&other).unwrap_err();
    assert!(lines[0].starts_with("bdev of namespace 7 of s0 cannot change"), "{lines:?}");
    refused(&[("\"SN0\"", "\"SN1\"")], "serial of subsystem s0");
    refused(&[("\"M0\"", "\"M1\"")], "model of subsystem s0");
    refused(&[("frontend = \"f1\"\n", "")], "frontend of subsystem s1");
}

#[test]
fn removal_runs_against_the_order_of_dependence() {
    let edits = [
        (
            "[[bdev]]\nname = \"file0\"\ndriver = \"file\"\npath = \"/data/file0\"\ndirect = false\n",
            "",
        ),
        (
            "[[subsystem]]\nname = \"s1\"\nnqn = \"nqn.2024-01.org.example:s1\"\nfrontend = \"f1\"\n[[subsystem.namespace]]\nnsid = 2\nbdev = \"file0\"\n",
            "",
        ),
        (
            "[[endpoint]]\nname = \"vm1\"\nsubsystem = \"s1\"\npath = \"/run/other/vm1\"\ndoorbells = \"shadow\"\nworkers = [\"w1\"]\n",
            "",
        ),
    ];
    let lines = [
        "endpoint vm1 removed",
        "namespace 2 of s1 removed",
        "subsystem s1 removed",
        "bdev file0 removed",
    ];
    allowed(&edits, &lines);
}

#[test]
fn endpoints_come_and_go_but_do_not_change() {
    let another =
        "[[endpoint]]\nname = \"vm2\"\nsubsystem = \"s0\"\n[[endpoint]]\nname = \"vm1\"\n";
    allowed(&[("[[endpoint]]\nname = \"vm1\"\n", another)], &["endpoint vm2 added"]);
    refused(&[("queues = 8", "queues = 9")], "queues of endpoint vm0");
    refused(&[("vectors = 4", "vectors = 5")], "vectors of endpoint vm0");
    refused(&[("\"256KiB\"", "\"512KiB\"")], "max_transfer of endpoint vm0");
    refused(&[("\"/run/other/vm1\"", "\"/run/other/vm2\"")], "path of endpoint vm1");
    refused(&[("doorbells = \"shadow\"\n", "")], "doorbells of endpoint vm1");
    refused(&[("workers = [\"w1\"]", "workers = [\"w0\"]")], "workers of endpoint vm1");
    refused(&[("subsystem = \"s1\"", "subsystem = \"s0\"")], "subsystem of endpoint vm1");
}

#[test]
fn limits_change_while_guests_run() {
    let namespace = "nsid = 1\nbdev = \"mem0\"\nlimits = { bandwidth = \"1MiB\", iops = 9 }\n";
    let edits = [
        ("nsid = 1\nbdev = \"mem0\"\n", namespace),
        ("queues = 8", "queues = 8\nlimits = { read_iops = 3 }"),
    ];
    let lines = [
        "limits of namespace 1 of s0 changed from none to iops 9, bandwidth 1MiB",
        "limits of endpoint vm0 changed from none to read_iops 3",
    ];
    allowed(&edits, &lines);
}

#[test]
fn processes_do_not_change() {
    refused(
        &[
            ("\"/run/vireo\"", "\"/run/v\""),
            // What would lie in it otherwise.
            ("[[worker]]", "[telemetry]\nmetrics = \"unix:/run/vireo/metrics.sock\"\n[[worker]]"),
            ("subsystem = \"s0\"", "subsystem = \"s0\"\npath = \"/run/vireo/vm0\""),
        ],
        "runtime_dir",
    );
    refused(&[("/var/lib/vireo", "/var/lib/v")], "state_dir");
    refused(&[("core = 1", "core = 2")], "core of worker w0");
    refused(&[("core = 1", "core = 1\nmax_nap = \"1ms\"")], "max_nap of worker w0");
    refused(
        &[("core = 1", "core = 1\n[[worker]]\nname = \"w2\"\ntenant = \"t\"")],
        "the list of workers (w2 added)",
    );
    refused(
        &[("name = \"b1\"", "name = \"b1\"\n[[backend]]\nname = \"b2\"")],
        "the list of backends (b2 added)",
    );
    refused(
        &[("name = \"f1\"", "name = \"f1\"\n[[frontend]]\nname = \"f2\"")],
        "the list of frontends (f2 added)",
    );
    let lines = changes(&[("core = 1", "core = 2"), ("queues = 8", "queues = 9")]).unwrap_err();
    assert_eq!(lines.len(), 2, "every reason is told: {lines:?}");
}
