//! `vireo doctor` on the machine that the tests run on: with a target, without, and after it was killed.

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::process::{Command, Output};
use vireo_tests::target::{Site, Target, configuration, one_memory_namespace, program, run};
use vireo_tests::wait::until;

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|problem| panic!("{problem}: {error}"))
}

/// Every finding of a check, as `level: found`.
fn of(report: &Value, check: &str) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings
        .filter(|finding| finding["check"] == check)
        .map(|finding| format!("{}: {}", text(&finding["level"]), text(&finding["found"])))
        .collect()
}

#[test]
fn a_running_target_is_healthy_and_a_killed_one_is_not() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    target.await_all_ready();
    let look = || json(&target.site().vireo(&["doctor", "-o", "json"]));
    let mut report = look();
    // What does not answer in time while the machine stalls does so a moment later.
    until("all is well", || {
        report = look();
        let running = of(&report, "who runs");
        let well = running.len() == 1 && running[0].starts_with("ok: 4 processes");
        well && of(&report, "API").len() == 1
    });
    for check in ["kernel", "shared memory", "open files", "runtime_dir", "state_dir", "memory"] {
        let found = of(&report, check);
        assert!(found.len() == 1 && found[0].starts_with("ok: "), "{check}: {found:?}");
    }
    // The counts are those of the list, and whatever is wrong has a remedy.
    let findings = report["findings"].as_array().expect("findings");
    let problems = findings.iter().filter(|finding| finding["level"] == "problem").count();
    assert_eq!(report["problems"], problems);
    for finding in findings.iter().filter(|finding| finding["level"] != "ok") {
        assert_ne!(finding["remedy"], "", "{finding}");
    }

    // Without their keeper nobody starts them again.
    kill(target.supervisor(), Signal::SIGKILL).expect("kill a process of our own");
    kill(target.pid("w0"), Signal::SIGKILL).expect("kill a process of our own");
    until("the death is seen", || {
        let found = of(&look(), "worker w0");
        found.first().is_some_and(|found| found.starts_with("problem: is dead"))
    });
    let output = target.site().vireo(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("PROBLEM"), "what is worst stands first:\n{text}");
    assert!(text.lines().any(|line| line.trim_start().starts_with("remedy: ")), "{text}");
}

#[test]
fn a_machine_is_looked_at_before_anything_runs() {
    let site = Site::new(&one_memory_namespace(&["vm0"]));
    let report = json(&site.vireo(&["doctor", "-o", "json"]));
    assert!(of(&report, "who runs")[0].starts_with("ok: nobody"), "{report:#}");
    assert!(of(&report, "configuration")[0].ends_with("is right"), "{report:#}");
    let text = String::from_utf8_lossy(&site.vireo(&["doctor", "-o", "yaml"]).stdout).into_owned();
    assert!(text.contains("check: who runs"), "{text}");

    site.configure(&configuration("[[worker]]\nname = \"w1\"\ncore = 4000\n"));
    let output = site.vireo(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = of(&json(&output), "worker w1");
    assert!(found[0].starts_with("problem: core 4000 is not online"), "{found:?}");

    site.configure(&configuration("nonsense = 1\n"));
    let output = site.vireo(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(of(&json(&output), "configuration")[0].contains("nonsense"));

    // Without a word about a configuration, the machine is looked at all the same.
    let mut command = Command::new(program("vireo"));
    command.args(["doctor", "-o", "json"]);
    let report = json(&run(command));
    assert_eq!(of(&report, "kernel").len(), 1, "{report:#}");
}
