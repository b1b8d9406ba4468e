//! OPI's storage services by pydpu, a client that was not written here: its descriptors beside ours, its classes and its
//! program against a running target.

mod compare;

use compare::{Wire, differences};
use nvme_spec::{Lba, Nsid};
use prost::Message;
use prost_types::FileDescriptorSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vireo_tests::host::Host;
use vireo_tests::target::{Target, one_memory_namespace, run};

/// What pydpu's classes and stubs do.
const DRIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/opi/drive.py");
/// What pydpu's descriptors are.
const DESCRIPTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/opi/descriptors.py");
/// The manager's socket for clients on gRPC's C core: they take the path for the name of a host, which a bare file name
/// could be. So they run in the runtime directory.
const ADDRESS: &str = "unix:api.sock";

/// A program of the environment that `make tools-pydpu` makes. `make test` brings it along; a developer's plain
/// `cargo test` may be without.
fn program(name: &str) -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/pydpu/bin").join(name);
    if place.is_file() {
        return Some(place);
    }
    assert!(std::env::var_os("CI").is_none(), "pydpu is not installed: make tools-pydpu");
    eprintln!("pydpu is not installed (make tools-pydpu): nothing tested");
    None
}

/// Standard output of a command that succeeds.
#[track_caller]
fn ok(command: Command, target: Option<&Target>) -> String {
    let Output { status, stdout, stderr } = run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let log = target.map(Target::log).unwrap_or_default();
    assert!(status.success(), "{status}: {}{}{log}", text(&stdout), text(&stderr));
    text(&stdout)
}

#[test]
fn every_message_and_method_is_on_the_wire_as_pydpu_has_it() {
    let Some(python) = program("python") else { return };
    let mut command = Command::new(python);
    command.arg(DESCRIPTORS);
    let digits = ok(command, None);
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits");
    let bytes: Vec<u8> = (0..digits.trim().len()).step_by(2).map(byte).collect();
    let theirs = FileDescriptorSet::decode(bytes.as_slice()).expect("descriptors");
    let ours = FileDescriptorSet::decode(vireo_api::DESCRIPTORS).expect("descriptors");
    let found = differences(&Wire::of(&ours), &Wire::of(&theirs));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn pydpu_makes_a_drive_that_is_used_and_takes_it_away() {
    let Some(python) = program("python") else { return };
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let step = |arguments: &[&str]| {
        let mut command = Command::new(&python);
        command.arg(DRIVE).args([arguments[0], ADDRESS]).args(&arguments[1..]);
        command.current_dir(target.site().run_dir());
        ok(command, Some(&target))
    };
    let identifiers = step(&["create"]);
    let mut host = Host::connect(target.socket("pcie-1.2.5"));
    let data: Vec<u8> = (0..4096_u32).map(|byte| (byte % 251) as u8).collect();
    host.write(Nsid(1), Lba(17), &data, 512).expect("write");
    assert!(host.read(Nsid(1), Lba(17), 8, 512).expect("read") == data);
    assert!(host.read(Nsid(1), Lba(32768), 1, 512).is_err(), "it has as many blocks as asked for");
    let uuid = step(&["look", &identifiers]);
    assert_eq!(uuid.trim().len(), 36, "{uuid}");
    drop(host);
    step(&["delete", &identifiers]);
    assert!(!target.socket("pcie-1.2.5").exists(), "nobody listens there any more");
}

#[test]
fn pydpus_own_program_is_answered_and_refused_in_words() {
    let Some(dpu) = program("dpu") else { return };
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let storage = |what: &str| {
        let mut command = Command::new(&dpu);
        command.args(["--address", ADDRESS, "storage", what]);
        command.current_dir(target.site().run_dir());
        ok(command, Some(&target))
    };
    // Creates, lists, gets, counts and deletes.
    let text = storage("subsystem");
    assert!(text.contains("nqn: \"nqn.2022-09.io.spdk:opi1\""), "{text}");
    assert!(text.contains("name: \"nvmeSubsystems/s0\""), "{text}");
    assert!(!text.contains("StatusCode"), "{text}");
    let text = storage("show");
    assert!(text.contains("name: \"nvmeSubsystems/s0\""), "{text}");
    assert!(!text.contains("opi1\"\n"), "it was deleted: {text}");
    // It asks for a controller of a subsystem that it did not make.
    let text = storage("controller");
    assert!(text.contains("StatusCode.NOT_FOUND") && text.contains("is not there"), "{text}");
}
