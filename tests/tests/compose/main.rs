//! `deploy/compose` and `deploy/otel`: that they name nothing that is not there, keep to what they promise, and, where an
//! engine answers, that the stack comes up and serves.

mod engine;
mod file;
mod image;

use std::path::{Path, PathBuf};
use std::process::Command;
use vireo_tests::target::run;

/// The top of the tree.
fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests lie in the tree").to_path_buf()
}

/// The file that is looked at.
fn compose_file() -> PathBuf {
    repository().join("deploy/compose/compose.yaml")
}

/// Compose, as a plugin of docker or a program of its own; `None` on a machine without.
fn compose() -> Option<Command> {
    let answers = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        Command::new(program).arg("--version").output().is_ok() && run(command).status.success()
    };
    if answers("docker", &["compose", "version"]) {
        let mut command = Command::new("docker");
        command.arg("compose");
        return Some(command);
    }
    answers("docker-compose", &["version"]).then(|| Command::new("docker-compose"))
}
