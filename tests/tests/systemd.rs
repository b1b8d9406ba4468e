//! The Debian package in a guest whose first process is systemd: what an administrator does with it, from installing to
//! purging. The guest's part is `tests/guest/systemd-package.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;
use vireo_tests::guest::Guest;
use vireo_tests::target::program;

/// What the guest runs.
const SCRIPT: &str = include_str!("../guest/systemd-package.sh");
/// Highest exposure of a unit of the data plane by `systemd-analyze security`, in tenths: 1.0 of 10.
const EXPOSURE_LIMIT: u32 = 10;
/// The guest's bound. An emulated one that shares its core needs a few minutes.
const SECONDS: u64 = 480;

/// Makes the package of the programs that this test was built beside, under the name that the script knows.
fn package(directory: &Path, file: &str, version: &str) -> PathBuf {
    let vireo = program("vireo");
    let made = Command::new("bash")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/package/build.sh"))
        .args([vireo.parent().expect("a program lies in a folder"), directory])
        .arg(version)
        .output()
        .expect("run build.sh");
    let text = String::from_utf8_lossy(&made.stdout);
    let built = text.lines().last().map(PathBuf::from).filter(|path| path.is_file());
    let Some(built) = built.filter(|_| made.status.success()) else {
        panic!(
            "the package was not made ({}); make tools-package installs what it takes:\n{text}{}",
            made.status,
            String::from_utf8_lossy(&made.stderr)
        );
    };
    let path = directory.join(file);
    std::fs::rename(built, &path).expect("rename the package");
    path
}

#[test]
fn the_package_serves_under_systemd_and_leaves_what_is_the_users() {
    let directory = tempfile::tempdir().expect("tempdir");
    let first = package(directory.path(), "vireo_1.deb", "0.0.1-1");
    let second = package(directory.path(), "vireo_2.deb", "0.0.2-1");
    let script = format!("LIMIT={EXPOSURE_LIMIT}\n{SCRIPT}");
    let output =
        Guest::new(&script).systemd().cpus(2).seconds(SECONDS).file(first).file(second).run();
    assert!(output.contains("  done\n"), "the script did not reach its end:\n{output}");
    println!("{output}");
}
