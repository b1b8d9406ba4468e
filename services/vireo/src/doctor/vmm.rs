//! Who could be a client: QEMU, and whether guests run at full speed.

use super::access::READ_WRITE;
use super::finding::Finding;
use super::machine::Machine;

/// The first QEMU with a vfio-user client.
const LEAST: (u32, u32) = (10, 1);
const KVM: &str = "/dev/kvm";
const NAMES: [&str; 3] = ["qemu-system-x86_64", "qemu-system-aarch64", "qemu-kvm"];
/// Where it is on systems that keep it out of PATH.
const PLACES: [&str; 1] = ["/usr/libexec/qemu-kvm"];

/// Looks at them.
pub fn check(machine: &Machine) -> Vec<Finding> {
    vec![qemu(machine), kvm(machine)]
}

fn qemu(machine: &Machine) -> Finding {
    let remedy = "QEMU 10.1 or later; cloud-hypervisor and other vfio-user clients do as well";
    let Some(program) = NAMES.iter().find_map(|name| machine.program(name, &PLACES)) else {
        return Finding::ok("QEMU", "is not installed here").with_advice(remedy);
    };
    let shown = program.display();
    let Some(text) = (machine.calls.run)(&program, &["--version"]) else {
        let found = format!("{shown} does not tell its version");
        return Finding::warning("QEMU", found, format!("run {shown} --version by hand"));
    };
    let Some((version, number)) = version(&text) else {
        let found = format!("{shown} tells no version that is known");
        return Finding::warning("QEMU", found, remedy);
    };
    let devices = (machine.calls.run)(&program, &["-device", "help"]).unwrap_or_default();
    if devices.contains("\"vfio-user-pci\"") {
        return Finding::ok("QEMU", format!("{version} with vfio-user-pci"));
    }
    let why = if number < LEAST { "is too old for" } else { "was built without" };
    Finding::warning("QEMU", format!("{version} {why} vfio-user-pci"), remedy)
}

/// `QEMU emulator version 10.1.2 (Debian ...)`.
fn version(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.lines().next()?.split("version ").nth(1)?.split_whitespace().next()?;
    let mut parts = version.split('.');
    let number = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((version.to_owned(), number))
}

fn kvm(machine: &Machine) -> Finding {
    match machine.metadata(KVM) {
        None => Finding::warning(
            "KVM",
            "/dev/kvm is not there: guests are emulated, slowly",
            "switch virtualisation on in the firmware, or nested virtualisation; modprobe kvm",
        ),
        // Guests are run by another user as a rule.
        Some(found) if !machine.may(KVM, &found, READ_WRITE) => {
            Finding::ok("KVM", format!("/dev/kvm is there; {} may not open it", machine.who.name))
                .with_advice("who runs guests has to be in its group")
        }
        Some(_) => Finding::ok("KVM", "/dev/kvm is there"),
    }
}
