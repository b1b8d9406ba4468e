//! The stack for real, where a Docker engine answers. The image is made of the programs that were built for the tests, by
//! the last stage of the Dockerfile: its first stage needs a base image out of the network, and a release build.

use super::image::lay_out;
use super::{compose, compose_file, repository};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use vireo_tests::target::run;
use vireo_tests::wait::within;

/// How long the stack may take to serve: five containers, started one after the other.
const START: std::time::Duration = std::time::Duration::from_secs(120);

/// Why there is no engine here; `None` if there is one.
fn missing() -> Option<String> {
    if Command::new("docker").arg("--version").output().is_err() {
        return Some("docker is not installed".to_owned());
    }
    let mut command = Command::new("docker");
    command.args(["info", "--format", "{{.ServerVersion}}"]);
    let output = run(command);
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!output.status.success() || version.is_empty()).then(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("no docker engine answers: {}", error.lines().next().unwrap_or_default())
    })
}

/// A stack under a name of its own; taken away when this is dropped.
struct Stack {
    name: String,
}

impl Stack {
    fn compose(&self, arguments: &[&str]) -> Command {
        let mut command = compose().expect("compose is here");
        command.env("VIREO_IMAGE", &self.name).arg("-p").arg(&self.name);
        command.arg("-f").arg(compose_file()).args(arguments);
        command
    }

    fn vireo(&self, arguments: &[&str]) -> Output {
        let exec = ["exec", "-T", "manager", "/usr/bin/vireo"];
        run(self.compose(&[&exec[..], arguments].concat()))
    }

    fn log(&self) -> String {
        let output = run(self.compose(&["logs", "--no-color", "--tail", "50"]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let images = [self.name.clone(), format!("{}-build", self.name)];
        let mut remove = Command::new("docker");
        remove.args(["image", "rm", "-f"]).args(images);
        for mut command in [self.compose(&["down", "-v", "--timeout", "5"]), remove] {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let Ok(mut child) = command.spawn() else { continue };
            if within(START, || child.try_wait().ok().flatten()).is_none() {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

/// Builds the image by the last stage of the Dockerfile. The stage before is files that are laid out here, with the owner
/// that the recipe gives them.
fn build(directory: &Path, name: &str) {
    lay_out(&directory.join("image"));
    let archive = directory.join("image.tar");
    let mut tar = Command::new("tar");
    tar.args(["--owner=65532", "--group=65532", "-cf"]).arg(&archive).arg("-C").arg(directory);
    tar.arg("image");
    docker(tar);
    let before = format!("{name}-build");
    let mut import = Command::new("docker");
    import.arg("import").arg(&archive).arg(&before);
    docker(import);
    let recipe = repository().join("deploy/compose/Dockerfile");
    let recipe = std::fs::read_to_string(recipe).expect("the Dockerfile");
    let last = recipe.rfind("FROM scratch").expect("a last stage");
    let stages = format!("FROM {before} AS build\n{}", &recipe[last..]);
    let context = directory.join("context");
    std::fs::create_dir(&context).expect("a directory");
    std::fs::write(context.join("Dockerfile"), stages).expect("write");
    let mut build = Command::new("docker");
    build.args(["build", "-q", "-t", name]).arg(context);
    docker(build);
}

/// Runs a command that has to succeed.
#[track_caller]
fn docker(command: Command) {
    let shown = format!("{command:?}");
    let output = run(command);
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_stack_comes_up_and_serves() {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return;
    }
    if compose().is_none() {
        eprintln!("skipped: neither `docker compose` nor docker-compose is here");
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let stack = Stack { name: format!("vireo-test-{}", std::process::id()) };
    build(directory.path(), &stack.name);
    docker(stack.compose(&["up", "-d", "--no-build"]));

    let ready = within(START, || stack.vireo(&["status"]).status.success().then_some(()));
    assert!(ready.is_some(), "it does not serve:\n{}", stack.log());
    let drive = "vfio-user:/run/vireo/vm0";
    let verify = ["perf", drive, "--pattern", "randrw", "--verify", "crc32c", "--time", "1s"];
    let output = stack.vireo(&verify);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = stack.vireo(&["perf", drive, "--namespace", "2", "--time", "1s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let output = stack.vireo(&["top", "-o", "json"]);
    let top: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (top["ready"].as_bool(), top["workers"].as_array().map(Vec::len)),
        (Some(true), Some(2))
    );
    let config = ["doctor", "--config", "/etc/vireo/vireo.toml", "-o", "json"];
    let doctor: Value = serde_json::from_slice(&stack.vireo(&config).stdout).expect("JSON");
    let findings = doctor["findings"].as_array().expect("findings");
    assert!(findings.iter().any(|f| f["check"] == "who runs" && f["level"] == "ok"), "{doctor:#}");
}
