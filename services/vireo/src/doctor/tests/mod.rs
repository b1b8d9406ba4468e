//! Every probe on machines that are files in a directory.

mod machines;
mod places;
mod running;

use super::access::Who;
use super::finding::{Finding, Level};
use super::machine::{Calls, Machine, Space};
use nix::errno::Errno;
use service::config::Config;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use tempfile::TempDir;

/// What every configuration here begins with.
const HEAD: &str = "[[backend]]\nname = \"b0\"\n[[frontend]]\nname = \"f0\"\n[[worker]]\nname = \"w0\"\ncore = 1\n";

/// A file system with plenty of everything.
const ROOMY: Space = Space { size: 100 << 30, free: 50 << 30, no_files: false, read_only: false };

/// A machine made of files: healthy, until a test makes it otherwise.
struct Fake {
    root: TempDir,
    calls: Calls,
    who: Who,
}

impl Fake {
    fn new() -> Self {
        let calls = Calls {
            memfd: || Ok(()),
            io_uring: || Ok(()),
            run: |_, _| None,
            space: |_| Some(ROOMY),
            access_list: |_| None,
        };
        // Somebody who owns nothing here and is in none of its groups.
        let who = Who { name: "vireo".into(), uid: 4_000_000_000, groups: vec![4_000_000_000] };
        let fake = Self { root: tempfile::tempdir().unwrap(), calls, who };
        fake.write("proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
        fake.write("proc/self/limits", "Max open files            1024   524288   files\n");
        fake.write("proc/self/status", "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n");
        fake.write("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n");
        fake.write("sys/devices/system/cpu/online", "0-3\n");
        fake.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        fake
    }

    fn machine(&self) -> Machine {
        Machine::at(self.root.path(), self.calls, self.who.clone())
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn directory(&self, path: &str, mode: u32) {
        let path = self.root.path().join(path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn config(tables: &str) -> Config {
    let text = format!("{tables}\n{HEAD}");
    let text = if tables.contains("[[worker]]") {
        // Tests of workers name all of them.
        format!("{tables}\n{}", HEAD.split("[[worker]]").next().unwrap())
    } else {
        text
    };
    Config::parse(&text, []).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

/// The only finding that is not ok.
#[track_caller]
fn only(findings: Vec<Finding>) -> Finding {
    let wrong: Vec<Finding> = findings.into_iter().filter(|f| f.level != Level::Ok).collect();
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    let finding = wrong.into_iter().next().unwrap();
    assert!(!finding.remedy.is_empty(), "{finding:?} has a remedy");
    finding
}

#[track_caller]
fn all_is_well(findings: &[Finding]) {
    assert!(!findings.is_empty());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
}

#[track_caller]
fn says(finding: &Finding, level: Level, part: &str) {
    assert_eq!(finding.level, level, "{finding:?}");
    assert!(finding.found.contains(part), "{part:?} in {finding:?}");
}

#[test]
fn what_takes_too_long_is_told_and_left_behind() {
    let hang: super::Probe = Box::new(|| {
        std::thread::sleep(std::time::Duration::from_secs(600));
        Vec::new()
    });
    let quick: super::Probe = Box::new(|| vec![Finding::ok("quick", "there")]);
    let dead: super::Probe = Box::new(|| panic!("a mistake"));
    let bound = std::time::Duration::from_secs(2);
    let found = super::within(bound, vec![("hang", hang), ("quick", quick), ("dead", dead)]);
    let names: Vec<&str> = found.iter().map(|finding| finding.check.as_str()).collect();
    assert_eq!(names, ["hang", "quick", "dead"]);
    says(&found[0], Level::Warning, "within 2 s");
    assert_eq!(found[1].found, "there");
}

#[test]
fn a_configuration_with_mistakes_is_a_problem_for_each() {
    let fake = Fake::new();
    let (config, found) = super::configuration(&fake.machine(), None);
    assert!(config.is_none());
    all_is_well(&found);
    fake.write("etc/vireo/vireo.toml", &format!("{HEAD}sise = 3\nnonsense = 4\n"));
    let (config, found) = super::configuration(&fake.machine(), None);
    assert!(config.is_none());
    assert_eq!(found.len(), 2, "{found:?}");
    says(&found[0], Level::Problem, "unknown key");
    fake.write("etc/vireo/vireo.toml", &HEAD.replace("core = 1\n", ""));
    let (config, found) = super::configuration(&fake.machine(), None);
    assert!(config.is_some());
    all_is_well(&found);
    let (config, found) = super::configuration(&fake.machine(), Some(Path::new("/nowhere.toml")));
    assert!(config.is_none());
    says(&only(found), Level::Problem, "/nowhere.toml");
}

#[test]
fn a_healthy_machine_has_nothing_to_be_done() {
    let fake = Fake::new();
    fake.directory("run", 0o777);
    fake.directory("var/lib", 0o777);
    let config = config("");
    let (machine, config) = (fake.machine(), Some(&config));
    all_is_well(&super::kernel::check(&machine));
    all_is_well(&super::limits::check(&machine, config));
    all_is_well(&super::cores::check(&machine, config));
    all_is_well(&super::drives::check(&machine, config));
    all_is_well(&super::space::check(&machine, config));
    assert!(super::nodes::check(&machine, config).is_empty(), "there is one node");
    all_is_well(&super::units::check(&machine));
    all_is_well(&super::directories::check(&machine, config.unwrap()));
    assert_eq!(Errno::EPERM.desc(), "Operation not permitted");
}
