//! The admin client, run against a target's manager.

use crate::target::{Target, program, run};
use serde_json::Value;
use std::process::{Command, Output};

/// Runs `vireo` with the target's runtime directory to its end.
pub fn vireo(target: &Target, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("vireo"));
    command.args(arguments).arg("--runtime-dir").arg(target.site().run_dir());
    run(command)
}

/// Standard output of a command that succeeds.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn ok(target: &Target, arguments: &[&str]) -> String {
    let output = vireo(target, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stderr), target.log());
    text(&output.stdout)
}

/// What a command that succeeds prints with `-o json`.
///
/// # Panics
/// If it fails, or prints something else.
#[track_caller]
pub fn json(target: &Target, arguments: &[&str]) -> Value {
    let text = ok(target, &[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// Standard error of a command that fails with status 1 and prints nothing else.
///
/// # Panics
/// If it ends otherwise.
#[track_caller]
pub fn refused(target: &Target, arguments: &[&str]) -> String {
    let output = vireo(target, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    text
}
