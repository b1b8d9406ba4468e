//! What a person sees on a terminal while it runs: how far it is, on standard error, and then no more of that.

use std::process::Command;

use vireo_tests::cores::beside;
use vireo_tests::target::{Target, one_memory_namespace, program, run};
use vireo_tests::wait::one_of;

use crate::address;

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let _cores = beside();
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let endpoint = address(target.endpoint("vm0"));
    let line = format!(
        "{} perf {endpoint} --time 2s --warm-up 1s --connect-timeout 50s -o json",
        program("vireo").display()
    );
    // A machine that stalls draws nothing meanwhile.
    one_of(3, || shown(&target, &line));
    let mut command = Command::new("bash");
    command.args(["-c", &line]);
    let output = run(command);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Runs it on a terminal, and looks at what that shows.
#[track_caller]
fn shown(target: &Target, line: &str) {
    // `script` gives its command a terminal for standard error; the result goes to a file.
    let result = target.site().directory().join("result");
    let mut command = Command::new("script");
    let shell = format!("{line} >{}", result.display());
    command.args(["--quiet", "--return", "--command", &shell, "/dev/null"]).env("TERM", "xterm");
    let output = run(command);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    for word in ["warm-up", "IOPS"] {
        assert!(shown.contains(word), "{word:?} in {shown:?}");
    }
    let result = std::fs::read(result).expect("the result");
    let report: serde_json::Value =
        serde_json::from_slice(&result).expect("JSON, and nothing else");
    assert_eq!(report["schema"], 1);
}
