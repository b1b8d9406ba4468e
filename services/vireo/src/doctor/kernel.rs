//! What the kernel lets Vireo do.

use super::finding::Finding;
use super::machine::Machine;
use nix::errno::Errno;

/// pidfd_open(2): without it no keeper can prove a death.
const LEAST: (u32, u32) = (5, 3);
/// The oldest that Vireo is tested on: Debian 12's.
const TESTED: (u32, u32) = (6, 1);
/// Clocks that are read without a system call.
const FAST_CLOCKS: [&str; 5] =
    ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"];

/// Looks at it.
pub fn check(machine: &Machine) -> Vec<Finding> {
    vec![version(machine), memory(machine), io_uring(machine), clock(machine), huge_pages(machine)]
}

fn version(machine: &Machine) -> Finding {
    let release = machine.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let number = match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => {
            let found = format!("is not told (\"{release}\")");
            return Finding::warning("kernel", found, "mount /proc");
        }
    };
    let found = format!("Linux {release}");
    if number < LEAST {
        let remedy = format!("run Linux {}.{} or later", TESTED.0, TESTED.1);
        return Finding::problem("kernel", format!("{found} has no pidfd_open"), remedy);
    }
    if number < TESTED {
        let remedy = format!("run Linux {}.{} or later", TESTED.0, TESTED.1);
        return Finding::warning("kernel", format!("{found} is older than any tested"), remedy);
    }
    Finding::ok("kernel", found)
}

fn memory(machine: &Machine) -> Finding {
    match (machine.calls.memfd)() {
        Ok(()) => Finding::ok("shared memory", "memfds can be made and sealed"),
        Err(error) => Finding::problem(
            "shared memory",
            format!("a memfd cannot be made and sealed: {}", error.desc()),
            "allow memfd_create and fcntl in the container's seccomp profile; sysctl vm.memfd_noexec=0",
        ),
    }
}

fn io_uring(machine: &Machine) -> Finding {
    let refused = match (machine.calls.io_uring)() {
        Ok(()) => return Finding::ok("io_uring", "can be used for files"),
        Err(refused) => refused,
    };
    let found = |why: &str| format!("{why}: files are served by threads, slower");
    match (refused, machine.number("/proc/sys/kernel/io_uring_disabled")) {
        (_, Some(disabled @ 1..)) => Finding::warning(
            "io_uring",
            found(&format!("is off (kernel.io_uring_disabled={disabled})")),
            "sysctl kernel.io_uring_disabled=0",
        ),
        (Errno::ENOSYS, _) => Finding::warning(
            "io_uring",
            found("is not in this kernel"),
            "run a kernel with CONFIG_IO_URING",
        ),
        (Errno::EPERM | Errno::EACCES, _) => Finding::warning(
            "io_uring",
            found("is refused to this process"),
            "allow io_uring_setup, io_uring_enter, io_uring_register in the container's seccomp profile",
        ),
        (Errno::ENOMEM, _) => Finding::problem(
            "io_uring",
            "cannot lock its memory",
            "raise the limit on locked memory: ulimit -l unlimited",
        ),
        (other, _) => Finding::warning("io_uring", found(other.desc()), "see dmesg"),
    }
}

fn clock(machine: &Machine) -> Finding {
    let place = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match machine.text(place) {
        None => Finding::ok("clock", "its source is not told"),
        Some(clock) if FAST_CLOCKS.contains(&clock.as_str()) => {
            Finding::ok("clock", format!("{clock}, read without a system call"))
        }
        Some(clock) => Finding::warning(
            "clock",
            format!("{clock} is slow to read, and workers look at it often"),
            "boot with clocksource=tsc tsc=reliable if the processors' counters agree",
        ),
    }
}

fn huge_pages(machine: &Machine) -> Finding {
    let pages = machine.field("/proc/meminfo", "HugePages_Total").unwrap_or_default();
    let found = match pages.as_str() {
        "" | "0" => "none are set aside, and none are needed".to_owned(),
        number => format!("{number} are set aside; Vireo uses none, guests may"),
    };
    Finding::ok("huge pages", found)
}
