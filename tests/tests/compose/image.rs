//! The image, as far as it can be made without an engine: what its recipe names is there, and what its last stage copies
//! runs by itself.

use super::repository;
use std::fs;
use std::path::Path;
use std::process::Command;
use vireo_tests::target::{program, run};

const PROGRAMS: [&str; 5] =
    ["vireo", "vireo-frontend", "vireo-worker", "vireo-backend", "vireo-manager"];

fn recipe(name: &str) -> String {
    let path = repository().join("deploy/compose").join(name);
    let text = fs::read_to_string(path).expect("a recipe");
    text.replace("\\\n", " ")
}

/// Lays the image's files out of the programs that were built for the tests.
pub(super) fn lay_out(image: &Path) {
    let programs = program("vireo").parent().expect("it lies in a directory").to_path_buf();
    let mut command = Command::new(repository().join("deploy/compose/collect.sh"));
    command.arg(programs).arg(image);
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn recipes_name_programs_and_files_that_are_there() {
    let text = recipe("Dockerfile");
    let build = text.lines().find(|line| line.contains("cargo build")).expect("it builds");
    let mut words = build.split_whitespace();
    let mut built = Vec::new();
    while let Some(word) = words.next() {
        if word == "-p" {
            built.push(words.next().expect("a package").to_owned());
        }
    }
    built.sort();
    let mut all = PROGRAMS.map(str::to_owned);
    all.sort();
    assert_eq!(built, all);
    for package in PROGRAMS {
        let folder = package.strip_prefix("vireo-").unwrap_or(package);
        let manifest = repository().join("services").join(folder).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a package");
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{package}");
    }
    for name in ["Dockerfile", "Dockerfile.guest"] {
        let text = recipe(name);
        let mut named = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let copied = match words.as_slice() {
                ["COPY", from, ..] if from.starts_with("--from=") => continue,
                ["COPY", sources @ .., _place] => sources,
                ["RUN", program, ..] if program.starts_with("deploy/") => &words[1..2],
                _ => continue,
            };
            for path in copied {
                assert!(repository().join(path).exists(), "{name}: {path}");
                named += 1;
            }
        }
        assert!(named >= 2, "{name} names {named} paths");
        assert!(text.lines().any(|line| line == "USER 65532:65532"), "{name}");
    }
}

#[test]
fn programs_run_on_what_the_image_holds_alone() {
    let directory = tempfile::tempdir().expect("tempdir");
    let image = directory.path().join("image");
    lay_out(&image);
    for place in ["etc/vireo/vireo.toml", "run/vireo", "var/lib/vireo", "tmp", "usr/bin/sleep"] {
        assert!(image.join(place).exists(), "{place}");
    }
    assert!(!image.join("bin/sh").exists(), "no shell");
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can see the image as its programs will");
        return;
    }
    for name in PROGRAMS {
        let mut command = Command::new("chroot");
        command.args(["--userspec=65532:65532"]).arg(&image).arg(format!("/usr/bin/{name}"));
        command.arg("--version");
        let output = run(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name}: {error}");
    }
    let mut check = Command::new("chroot");
    check.args(["--userspec=65532:65532"]).arg(&image);
    check.args(["/usr/bin/vireo", "check", "--config", "/etc/vireo/vireo.toml"]);
    let output = run(check);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
