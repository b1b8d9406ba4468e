//! NVMe drives as block devices: `driver = "nvme"`.

use super::mistake::Mistake;
use super::section::Section;
use super::{Bdev, Driver};
use std::path::Path;

/// Whose keys these are.
pub(super) const CASE: &str = "driver = \"nvme\"";
/// What a target looks like.
const RIGHT: &str = "write \"vfio-user:/run/vireo/vm0\" or \"pcie:0000:01:00.0\"";
/// Greatest namespace identifier (NVMe Base 2.0c 3.2.1.2).
const NSID_MAX: u64 = 0xFFFF_FFFE;

pub(super) fn parse(section: &Section<'_>) -> Driver {
    if !section.has("target") {
        section.wrong("target", "is missing", "add target = \"pcie:0000:01:00.0\"");
    }
    let target = section.text("target").unwrap_or_default();
    if !target.is_empty() && !is_target(&target) || section.has("target") && target.is_empty() {
        section.wrong("target", format!("\"{target}\" names no drive"), RIGHT);
    }
    Driver::Nvme {
        target,
        nsid: section.integer("nsid", 1..=NSID_MAX).unwrap_or(1) as u32,
        read_only: section.boolean("read_only").unwrap_or(false),
        polled: section.boolean("polled").unwrap_or(false),
    }
}

/// Looks at every key, for a section whose driver is not known.
pub(super) fn keys(section: &Section<'_>) -> impl Sized {
    (section.text("target"), section.integer("nsid", 1..=NSID_MAX), section.boolean("polled"))
}

/// What is wrong with a bdev's drive, after those of the bdevs before it: the key, what is wrong and what would be right.
/// Namespaces of one drive are bdevs of their own, each once; a drive has one driver, so they are one backend's.
pub(super) fn conflict(bdevs: &[Bdev], bdev: &Bdev) -> Option<(&'static str, String, String)> {
    let Driver::Nvme { target, nsid, .. } = &bdev.driver else { return None };
    let mut others = bdevs.iter().enumerate().filter_map(|(index, other)| match &other.driver {
        Driver::Nvme { target: same, nsid, .. } if same == target && !same.is_empty() => {
            Some((index, other, *nsid))
        }
        _ => None,
    });
    others.find_map(|(first, other, taken)| {
        if taken == *nsid {
            let wrong = match nsid {
                1 => format!("{target} belongs to bdev[{first}] already"),
                nsid => format!("namespace {nsid} of {target} belongs to bdev[{first}] already"),
            };
            Some(("target", wrong, "give each its own drive or nsid".to_owned()))
        } else if other.backend != bdev.backend {
            let wrong = format!("{target} is driven by the backend of bdev[{first}]");
            Some(("backend", wrong, format!("write backend = \"{}\"", other.backend)))
        } else {
            None
        }
    })
}

/// What the machine lacks: a PCI function that is not there. A target's socket may come later.
pub(super) fn check_host(bdev: &Bdev, index: usize) -> Option<Mistake> {
    let Driver::Nvme { target, .. } = &bdev.driver else { return None };
    let address = target.strip_prefix("pcie:")?;
    let missing = !Path::new("/sys/bus/pci/devices").join(address).exists();
    missing.then(|| {
        let wrong = format!("there is no pci function {address}");
        Mistake::new(format!("bdev[{index}].target"), wrong, "`lspci -D` lists those there are")
    })
}

/// `vfio-user:` and an absolute path, or `pcie:` and domain, bus, device and function.
fn is_target(text: &str) -> bool {
    match text.split_once(':') {
        Some(("vfio-user", path)) => path.starts_with('/') && path.len() > 1,
        Some(("pcie", address)) => is_function(address),
        _ => false,
    }
}

fn is_function(address: &str) -> bool {
    let hex = |text: &str, digits: usize| {
        text.len() == digits
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let parts = || {
        let (rest, function) = address.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':')?;
        Some((domain, bus, device, function))
    };
    parts().is_some_and(|(domain, bus, device, function)| {
        let domains = hex(domain, 4) || hex(domain, 5);
        domains
            && hex(bus, 2)
            && hex(device, 2)
            && hex(function, 1)
            && device < "20"
            && function < "8"
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn with_bdevs(tables: &str) -> Result<Config, Vec<String>> {
        let text = format!(
            "[[worker]]\nname = \"w0\"\n[[backend]]\nname = \"b0\"\n[[frontend]]\nname = \"f0\"\n{tables}"
        );
        let lines = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect();
        Config::parse(&text, []).map_err(lines)
    }

    const DRIVE: &str =
        "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"pcie:0000:01:00.0\"\n";

    #[test]
    fn a_drive_needs_a_target_and_nothing_else() {
        let config = with_bdevs(DRIVE).unwrap();
        let driver = Driver::Nvme {
            target: "pcie:0000:01:00.0".to_owned(),
            nsid: 1,
            read_only: false,
            polled: false,
        };
        assert_eq!(config.bdevs[0].driver, driver);
        assert_eq!((config.bdevs[0].size, config.bdevs[0].block_size), (None, 0));
        assert_eq!(Config::parse(&config.to_toml(), []).unwrap(), config, "it reads back");
    }

    #[test]
    fn each_mistake_is_one_line() {
        let one = |more: &str, part: &str| {
            let lines = with_bdevs(&format!("{DRIVE}{more}")).unwrap_err();
            assert!(lines.len() == 1 && lines[0].contains(part), "{lines:?}");
        };
        one("size = \"1GiB\"\n", "bdev[0].size: a drive has its own size");
        one("path = \"/x\"\n", "bdev[0].path: is for driver = \"file\" only");
        one("nsid = 0\n", "bdev[0].nsid");
        one(&DRIVE.replace("nv0", "nv1"), "bdev[1].target: pcie:0000:01:00.0 belongs to bdev[0]");
        let lines = with_bdevs("[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\n").unwrap_err();
        assert!(lines.len() == 1 && lines[0].contains("bdev[0].target: is missing"), "{lines:?}");
        let lines =
            with_bdevs("[[bdev]]\nname = \"m\"\ndriver = \"malloc\"\nsize = 4096\nnsid = 2\n");
        assert!(lines.unwrap_err()[0].contains("is for driver = \"nvme\" only"));
    }

    #[test]
    fn namespaces_of_a_drive_are_bdevs_of_one_backend() {
        let second = DRIVE.replace("nv0", "nv1") + "nsid = 2\n";
        let config = with_bdevs(&format!("{DRIVE}{second}")).unwrap();
        assert_eq!(config.bdevs.len(), 2);
        assert_eq!(config.bdevs[0].channel, crate::config::Channel::Lease);
        let elsewhere = format!("{DRIVE}{second}backend = \"b1\"\n[[backend]]\nname = \"b1\"\n");
        let lines = with_bdevs(&elsewhere).unwrap_err();
        assert!(lines.len() == 1 && lines[0].starts_with("bdev[1].backend: pcie:"), "{lines:?}");
        let third = DRIVE.replace("nv0", "nv2") + "nsid = 2\n";
        let lines = with_bdevs(&format!("{DRIVE}{second}{third}")).unwrap_err();
        let wanted = "bdev[2].target: namespace 2 of pcie:0000:01:00.0 belongs to bdev[1] already";
        assert!(lines.len() == 1 && lines[0].starts_with(wanted), "{lines:?}");
    }

    #[test]
    fn targets_are_told_from_other_text() {
        for good in ["vfio-user:/run/vireo/vm0", "pcie:0000:01:00.0", "pcie:10000:e1:1f.7"] {
            assert!(is_target(good), "{good}");
        }
        let bad = [
            "",
            "pcie:",
            "pcie:01:00.0",
            "pcie:0000:01:20.0",
            "pcie:0000:01:00.8",
            "vfio-user:x",
            "tcp:/a",
        ];
        for bad in bad {
            assert!(!is_target(bad), "{bad}");
        }
    }
}
