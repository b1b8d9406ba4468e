//! Sockets and units.

use super::super::{sockets, units};
use super::*;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};
use vireo_proto::handoff::{HostStatus, ProcessStatus};

fn listener(fake: &Fake, path: &str, kind: SockType) -> OwnedFd {
    let path = fake.root.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&fd, Backlog::new(4).unwrap()).unwrap();
    fd
}

#[test]
fn sockets_tell_who_runs_and_who_died() {
    let fake = Fake::new();
    let config = config("runtime_dir = \"/run/x\"\n");
    let look =
        |answer: fn() -> Option<HostStatus>| sockets::check(&fake.machine(), &config, |_| answer());
    let found = look(|| panic!("nobody is asked"));
    all_is_well(&found);
    says(&found[0], Level::Ok, "nobody");

    let all = ["backend-b0", "worker-w0", "frontend-f0", "manager-m0"];
    let mut open: Vec<OwnedFd> = all
        .iter()
        .map(|name| listener(&fake, &format!("run/x/{name}.sock"), SockType::SeqPacket))
        .collect();
    open.push(listener(&fake, "run/x/api.sock", SockType::Stream));
    let well = || Some(HostStatus { ready: true, ..HostStatus::default() });
    all_is_well(&look(well));
    says(&only(look(|| None)), Level::Problem, "does not answer");

    // The worker dies.
    drop(open.remove(1));
    let missing = || {
        let process = ProcessStatus {
            kind: "worker".into(),
            name: "w0".into(),
            message: "is not there".into(),
            ..ProcessStatus::default()
        };
        let failures = vec!["worker w0: is not there".to_owned()];
        Some(HostStatus { ready: false, failures, processes: vec![process] })
    };
    let finding = only(look(missing));
    says(&finding, Level::Problem, "is dead");
    assert_eq!(finding.check, "worker w0");
    fs::remove_file(fake.root.path().join("run/x/worker-w0.sock")).unwrap();
    says(&only(look(well)), Level::Problem, "does not run");
    // All of them do.
    open.clear();
    let found = look(|| panic!("nobody is asked"));
    assert_eq!(found.iter().filter(|f| f.level == Level::Warning).count(), 3, "{found:?}");
    says(&found[0], Level::Warning, "left its socket behind");
}

#[test]
fn what_the_manager_misses_is_told_once() {
    let fake = Fake::new();
    let config = config("runtime_dir = \"/run/x\"\n");
    let names = ["backend-b0", "worker-w0", "frontend-f0", "manager-m0"];
    let path = |name: &&str| listener(&fake, &format!("run/x/{name}.sock"), SockType::SeqPacket);
    let _open: Vec<OwnedFd> = names.iter().map(path).collect();
    let _api = listener(&fake, "run/x/api.sock", SockType::Stream);
    let found = sockets::check(&fake.machine(), &config, |_| {
        let process = ProcessStatus {
            kind: "worker".into(),
            name: "w0".into(),
            message: "hangs".into(),
            ..ProcessStatus::default()
        };
        let failures = vec!["worker w0: hangs".to_owned(), "bdev disk: no such file".to_owned()];
        let manager = ProcessStatus {
            kind: "manager".into(),
            message: "worker w0: hangs".into(),
            ..ProcessStatus::default()
        };
        Some(HostStatus { ready: false, failures, processes: vec![process, manager] })
    });
    let wrong: Vec<&Finding> = found.iter().filter(|f| f.level == Level::Problem).collect();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    says(wrong[0], Level::Problem, "hangs");
    says(wrong[1], Level::Problem, "bdev disk: no such file");
}

#[test]
fn units_tell_which_have_failed() {
    let mut fake = Fake::new();
    all_is_well(&units::check(&fake.machine()));
    fake.write("usr/lib/systemd/system/vireo.target", "");
    assert!(units::are_installed(&fake.machine()));
    all_is_well(&units::check(&fake.machine()));
    fake.directory("run/systemd/system", 0o755);
    says(&only(units::check(&fake.machine())), Level::Warning, "does not answer");
    fake.write("usr/bin/systemctl", "");
    let program = fake.root.path().join("usr/bin/systemctl");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    fake.calls.run = |_, _| {
        let lines = "vireo-manager.service loaded active running Vireo manager\n\
                     vireo-worker@w0.service loaded failed failed Vireo worker w0\n\
                     vireo.target loaded active active Vireo\n";
        Some(lines.to_owned())
    };
    let finding = only(units::check(&fake.machine()));
    says(&finding, Level::Problem, "vireo-worker@w0.service is failed");
    assert!(finding.remedy.contains("journalctl -u vireo-worker@w0.service"));
    fake.calls.run = |_, _| Some("vireo.target loaded inactive dead Vireo\n".to_owned());
    says(&only(units::check(&fake.machine())), Level::Warning, "not started");
    fake.calls.run = |_, _| {
        Some("vireo.target loaded active active Vireo\nvireo-manager.service loaded active running x\n".to_owned())
    };
    let found = units::check(&fake.machine());
    all_is_well(&found);
    says(&found[0], Level::Ok, "1 unit running");
}
