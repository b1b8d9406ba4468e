//! Directories, disks, access lists and NUMA nodes.

use super::super::access::tests::attribute;
use super::super::{directories, limits, nodes, space};
use super::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use std::os::fd::AsRawFd;

const PLACES: &str = "runtime_dir = \"/run/x\"\nstate_dir = \"/var/x\"\n";

/// A machine whose directories are everybody's but for the two of Vireo, which are as the group bits and a list say.
fn fake() -> Fake {
    let fake = Fake::new();
    fake.directory("run", 0o755);
    fake.directory("var", 0o755);
    fake.directory("run/x", 0o770);
    fake.directory("var/x", 0o770);
    fake
}

fn problems(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.level != Level::Ok).collect()
}

#[test]
fn an_access_list_lets_a_user_in_whom_the_bits_do_not() {
    let mut fake = fake();
    let place = config(PLACES);
    let look = |fake: &Fake| directories::check(&fake.machine(), &place);
    let found = look(&fake);
    assert_eq!(problems(&found).len(), 2, "{found:?}");
    says(&found[0], Level::Problem, "vireo may not write to /run/x");
    // u:4000000000:rwx, and a mask that lets it.
    fake.calls.access_list =
        |_| Some(attribute(&[(2, 7, 4_000_000_000), (4, 0, u32::MAX), (16, 7, u32::MAX)]));
    all_is_well(&look(&fake));
    fake.calls.access_list =
        |_| Some(attribute(&[(2, 7, 4_000_000_000), (4, 0, u32::MAX), (16, 5, u32::MAX)]));
    assert_eq!(problems(&look(&fake)).len(), 2, "the mask takes writing away");
}

#[test]
fn a_closed_directory_on_the_way_is_named() {
    let fake = fake();
    fake.directory("run", 0o700);
    let found = directories::check(&fake.machine(), &config(PLACES));
    says(&found[0], Level::Problem, "vireo may not go through /run to /run/x");
    assert!(found[0].remedy.contains("setfacl -m u:vireo:x /run"), "{found:?}");
}

#[test]
fn what_a_start_as_root_left_behind_is_named() {
    let mut fake = fake();
    fake.who.uid = 0;
    let place = config(&format!(
        "{PLACES}[[subsystem]]\nname = \"s0\"\n[[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n"
    ));
    all_is_well(&directories::check(&fake.machine(), &place));
    fake.who.uid = 4_000_000_000;
    fake.directory("run/x", 0o757);
    fake.directory("var/x", 0o757);
    fake.directory("run/x/vm0", 0o750);
    fake.write("var/x/manager.json", "{}");
    let file = fake.root.path().join("var/x/manager.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let found = directories::check(&fake.machine(), &place);
    let files = found.iter().find(|f| f.found.contains("manager.json")).unwrap();
    says(files, Level::Problem, "vireo may not read and write /var/x/manager.json");
    assert!(files.remedy.starts_with("chown -R vireo /var/x"), "{files:?}");
    let endpoint = found.iter().find(|finding| finding.check == "endpoint vm0").unwrap();
    says(endpoint, Level::Problem, "vireo may not write to /run/x/vm0");
}

#[test]
fn a_service_s_socket_that_everybody_may_connect_to_is_named() {
    let mut fake = fake();
    fake.who.uid = 0;
    let place = config(PLACES);
    let path = fake.root.path().join("run/x/worker-w0.sock");
    let kind = SockType::SeqPacket;
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    all_is_well(&directories::check(&fake.machine(), &place));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let finding = only(directories::check(&fake.machine(), &place));
    says(&finding, Level::Warning, "everybody may connect to /run/x/worker-w0.sock");
}

#[test]
fn the_state_needs_room() {
    let mut fake = fake();
    let place = config(PLACES);
    let look = |fake: &Fake| space::check(&fake.machine(), Some(&place));
    all_is_well(&look(&fake));
    fake.calls.space = |_| Some(Space { free: 10 << 20, ..ROOMY });
    says(&only(look(&fake)), Level::Warning, "only 10 MiB are free where /var/x is");
    fake.calls.space = |_| Some(Space { free: 4096, ..ROOMY });
    says(&only(look(&fake)), Level::Problem, "4 KiB are free");
    fake.calls.space = |_| Some(Space { no_files: true, ..ROOMY });
    says(&only(look(&fake)), Level::Problem, "no further file");
    fake.calls.space = |_| Some(Space { read_only: true, ..ROOMY });
    says(&only(look(&fake)), Level::Problem, "read-only");
}

#[test]
fn files_need_room_for_what_is_not_written_yet() {
    let mut fake = fake();
    fake.directory("srv", 0o777);
    let file = |name: &str, more: &str| {
        format!(
            "[[bdev]]\nname = \"{name}\"\ndriver = \"file\"\npath = \"/srv/{name}\"\n\
             size = \"30GiB\"\n{more}"
        )
    };
    let both = config(&format!("{PLACES}{}{}", file("a", "create = true\n"), file("b", "")));
    fs::File::create(fake.root.path().join("srv/b")).unwrap().set_len(30 << 30).unwrap();
    let path = fake.root.path().join("srv/b");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let look = |fake: &Fake, config: &Config| space::check(&fake.machine(), Some(config));
    let finding = only(look(&fake, &both));
    says(&finding, Level::Warning, "60 GiB of a, b are not written yet, and only 50 GiB are free");
    let one = config(&format!("{PLACES}{}", file("b", "")));
    all_is_well(&look(&fake, &one));

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let finding = only(look(&fake, &one));
    says(&finding, Level::Problem, "vireo may not read and write /srv/b");
    let reader = config(&format!("{PLACES}{}", file("b", "read_only = true\n")));
    all_is_well(&look(&fake, &reader));
    fake.directory("srv", 0o755);
    let new = config(&format!("{PLACES}{}", file("a", "create = true\n")));
    says(&only(look(&fake, &new)), Level::Problem, "vireo may not make it");
    fake.directory("srv", 0o700);
    says(&only(look(&fake, &one)), Level::Problem, "may not go through /srv");
    fake.who.uid = 0;
    fake.calls.space = |path| {
        let read_only = path.ends_with("srv/b");
        Some(Space { read_only, ..ROOMY })
    };
    says(&only(look(&fake, &one)), Level::Problem, "mounted read-only");
}

#[test]
fn a_small_dev_shm_is_a_hint_for_guests_memory() {
    let mut fake = fake();
    let look = |fake: &Fake| space::check(&fake.machine(), None);
    assert!(look(&fake)[0].found.contains("is not there"));
    fake.directory("dev/shm", 0o1777);
    assert!(look(&fake)[0].found.contains("50 GiB of 100 GiB are free"));
    fake.calls.space = |_| Some(Space { size: 64 << 20, free: 64 << 20, ..ROOMY });
    let found = look(&fake);
    all_is_well(&found);
    assert!(found[0].remedy.contains("--shm-size"), "{found:?}");
}

#[test]
fn a_drive_wants_workers_of_its_node() {
    let fake = fake();
    let tables = "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"pcie:0000:01:00.0\"\n\
                  [[worker]]\nname = \"w0\"\ncore = 1\n[[worker]]\nname = \"w1\"\ncore = 3\n\
                  [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"nv0\"\n\
                  [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n";
    let all = config(tables);
    let look = |config: &Config| nodes::check(&fake.machine(), Some(config));
    fake.write("sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n");
    fake.write("sys/devices/system/node/node0/cpulist", "0-3\n");
    assert!(look(&all).is_empty(), "there is one node");
    fake.write("sys/devices/system/node/node0/cpulist", "0-1\n");
    fake.write("sys/devices/system/node/node1/cpulist", "2-3\n");
    fake.write("sys/devices/system/node/node2/cpulist", "\n");
    let finding = only(look(&all));
    says(
        &finding,
        Level::Warning,
        "NUMA node 1, and workers of endpoint vm0 on another: w0 (core 1)",
    );
    assert!(finding.remedy.contains("a core of 2-3"), "{finding:?}");
    all_is_well(&look(&config(&format!("{tables}workers = [\"w1\"]\n"))));
    fake.write("sys/bus/pci/devices/0000:01:00.0/numa_node", "-1\n");
    assert!(look(&all).is_empty(), "the firmware does not tell");
}

#[test]
fn limits_are_those_of_the_units_where_they_are_installed() {
    let fake = fake();
    let drive = "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"pcie:0000:01:00.0\"\n";
    let config = config(drive);
    fake.write(
        "proc/self/limits",
        "Max open files            64        64        files\n\
         Max locked memory         8388608   8388608   bytes\n",
    );
    let look = || limits::check(&fake.machine(), Some(&config));
    let found = look();
    assert_eq!(problems(&found).len(), 2, "{found:?}");
    let units = "usr/lib/systemd/system";
    fake.write(&format!("{units}/vireo.target"), "");
    for kind in ["backend", "frontend", "worker"] {
        let text = "[Service]\nLimitNOFILE=524288\n";
        fake.write(&format!("{units}/vireo-{kind}@.service"), text);
    }
    fake.write(&format!("{units}/vireo-manager.service"), "LimitNOFILE=524288\n");
    says(&only(look()), Level::Problem, "8 MiB are allowed");
    let drop_in = "run/systemd/generator/vireo-backend@b0.service.d/50-configuration.conf";
    fake.write(drop_in, "[Service]\nLimitMEMLOCK=infinity\n");
    all_is_well(&look());
    let drop_in = "etc/systemd/system/vireo-worker@w0.service.d/override.conf";
    fake.write(drop_in, "[Service]\nLimitNOFILE=16:32\n");
    says(&only(look()), Level::Problem, "32 are allowed, and worker w0 needs about");
}
