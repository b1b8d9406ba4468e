//! The admin client against a running target: what a person does in a day, and what goes wrong.

use serde_json::Value;
use std::process::Command;
use vireo_tests::admin_client::{json, ok, refused, vireo};
use vireo_tests::target::{Target, one_memory_namespace, program, run};
use vireo_tests::wait::until;

#[test]
fn a_drive_is_made_used_grown_and_taken_away() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    ok(&target, &["volume", "create", "data", "--driver", "malloc", "--size", "16MiB"]);
    ok(&target, &["subsystem", "create", "s1", "--serial", "ADMIN1"]);
    ok(&target, &["namespace", "create", "s1", "--volume", "data"]);
    ok(&target, &["controller", "create", "vm1", "--subsystem", "s1", "--queues", "2"]);

    let address = format!("vfio-user:{}", target.endpoint("vm1").display());
    let mut perf = Command::new(program("vireo"));
    perf.args(["perf", &address, "--pattern", "randrw", "--verify", "crc32c", "--time", "500ms"]);
    let output = run(perf);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let stats = json(&target, &["stats", "get", "controllers/vm1"]);
    let total = &stats["stats"][0]["total"];
    let reads: u64 = total["reads"].as_str().expect("counted").parse().expect("a number");
    assert!(reads > 0, "{stats}");
    let table = ok(&target, &["stats", "get"]);
    assert!(table.contains("controllers/vm0") && table.contains("controllers/vm1"), "{table}");

    let grown = json(&target, &["volume", "grow", "data", "32MiB"]);
    assert_eq!(grown["size_bytes"], (32_u64 << 20).to_string());
    assert!(ok(&target, &["volume", "list"]).contains("32 MiB"));
    let namespaces = json(&target, &["namespace", "list"]);
    assert_eq!(namespaces.as_array().map(Vec::len), Some(2), "{namespaces}");

    assert!(refused(&target, &["volume", "delete", "data"]).contains("s1"), "it is in use");
    assert!(
        refused(&target, &["subsystem", "delete", "s1"]).contains("s1/namespaces/1"),
        "so is this"
    );
    ok(&target, &["controller", "delete", "vm1"]);
    ok(&target, &["namespace", "delete", "s1/1"]);
    ok(&target, &["subsystem", "delete", "s1"]);
    ok(&target, &["volume", "delete", "data"]);
    ok(&target, &["volume", "delete", "data", "--allow-missing"]);
    assert!(refused(&target, &["volume", "get", "data"]).contains("volumes/data"));
    assert!(!target.socket("vm1").exists(), "nobody listens there any more");
}

#[test]
fn what_is_exported_can_be_applied() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    ok(
        &target,
        &["volume", "create", "a", "--driver", "null", "--size", "1GiB", "--latency", "20us"],
    );
    ok(&target, &["subsystem", "create", "s1"]);
    ok(&target, &["namespace", "create", "s1", "--volume", "a", "--nsid", "7"]);
    ok(&target, &["controller", "create", "vm1", "--subsystem", "s1", "--doorbells", "shadow"]);
    let document = ok(&target, &["export"]);
    assert!(!document.contains("mem0"), "that one is the file's: {document}");
    let file = target.site().directory().join("export.yaml");
    std::fs::write(&file, &document).expect("write");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(ok(&target, &["apply", "-f", file]), "nothing to change\n");

    ok(&target, &["subsystem", "delete", "s1", "--force"]);
    ok(&target, &["volume", "delete", "a"]);
    let plan = ok(&target, &["apply", "-f", file, "--dry-run"]);
    assert_eq!(plan.lines().count(), 4, "{plan}");
    assert!(refused(&target, &["volume", "get", "a"]).contains("volumes/a"), "nothing was made");
    ok(&target, &["apply", "-f", file]);
    assert_eq!(ok(&target, &["export"]), document);

    // On an empty target all of it is what it was: to hosts, by UUID and NQN, and to OPI's clients, by their names.
    let named = document.replace("  volume: volumes/a\n", "  volume: volumes/a\n  opi_id: disk\n");
    let other = Target::start(&one_memory_namespace(&["vm0"]));
    let run_dir = |target: &Target| target.site().run_dir().display().to_string();
    let moved = named.replace(&run_dir(&target), &run_dir(&other));
    assert!(moved.contains("uuid: ") && moved.contains("opi_id: disk"), "{moved}");
    let elsewhere = other.site().directory().join("export.yaml");
    std::fs::write(&elsewhere, &moved).expect("write");
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    assert_eq!(ok(&other, &["apply", "-f", elsewhere]).lines().count(), 4);
    let parsed = |text: &str| -> Value { serde_yaml_ng::from_str(text).expect("YAML") };
    assert_eq!(parsed(&ok(&other, &["export"])), parsed(&moved));
    assert_eq!(ok(&other, &["apply", "-f", elsewhere]), "nothing to change\n");
    drop(other);

    let changed = document.replace("SHADOW", "MAPPED");
    std::fs::write(file, changed).expect("write");
    let line = refused_after(&target, &["apply", "-f", file]);
    assert!(line.contains("controllers/vm1") && line.contains("doorbells"), "{line}");
}

/// Standard error of a command that does a part and then fails.
#[track_caller]
fn refused_after(target: &Target, arguments: &[&str]) -> String {
    let output = vireo(target, arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn events_and_rates_come_as_they_happen() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let mut events = Command::new(program("vireo"));
    events.args(["events", "volumes/a", "--count", "2", "-o", "json", "--runtime-dir"]);
    events.arg(target.site().run_dir());
    let events = std::thread::spawn(move || run(events));
    // The watcher has to be there first, and nothing tells that it is: so until it ends, there is always another one.
    until("two events of a volume are seen", || {
        ok(&target, &["volume", "create", "a", "--driver", "malloc", "--size", "1MiB"]);
        ok(&target, &["volume", "delete", "a"]);
        events.is_finished()
    });
    let output = events.join().expect("it does not panic");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("one JSON object a line");
        assert_eq!(event["name"], "volumes/a");
    }
    let rates =
        ok(&target, &["stats", "watch", "controllers/vm0", "--interval", "100ms", "--count", "2"]);
    assert_eq!(
        rates.lines().filter(|line| line.starts_with("controllers/vm0")).count(),
        2,
        "{rates}"
    );
}

#[test]
fn mistakes_get_one_line_each() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let line = refused(&target, &["volume", "create", "x", "--driver", "malloc", "--size", "1000"]);
    assert!(line.contains("size_bytes"), "{line}");
    let line = refused(&target, &["volume", "grow", "mem0", "1GiB"]);
    assert!(line.contains("configuration file"), "{line}");
    let line = refused(&target, &["namespace", "create", "nowhere", "--volume", "mem0"]);
    assert!(line.contains("subsystems/nowhere"), "{line}");
    let line = refused(&target, &["apply", "-f", "/nowhere.yaml"]);
    assert!(line.contains("/nowhere.yaml"), "{line}");

    let mut nobody = Command::new(program("vireo"));
    nobody.args(["volume", "list", "--runtime-dir", "/nowhere"]);
    let output = run(nobody);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(line.contains("/nowhere/api.sock") && line.contains("is Vireo running?"), "{line}");
}
