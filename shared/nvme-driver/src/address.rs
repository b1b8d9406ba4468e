//! Where a controller is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Name of the socket within an endpoint's directory.
const SOCKET_NAME: &str = "cntrl";

/// Where a controller is: `vfio-user:PATH` (an endpoint's directory or its socket) or `pcie:DDDD:BB:DD.F`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A vfio-user server's socket, or the directory that holds it as `cntrl`.
    VfioUser(PathBuf),
    /// A PCI function that is bound to vfio-pci.
    Pcie(PciAddress),
}

/// Domain, bus, device and function of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    /// Domain (segment).
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

/// Text that names no controller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no controller: write vfio-user:/run/vireo/vm0 or pcie:0000:01:00.0")]
pub struct AddressError {
    /// The text.
    pub text: String,
}

impl Address {
    /// The socket of a vfio-user address: the path itself, or `cntrl` in it if it is a directory.
    pub(crate) fn socket(path: &Path) -> PathBuf {
        if path.is_dir() { path.join(SOCKET_NAME) } else { path.to_path_buf() }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.to_owned() };
        match text.split_once(':') {
            Some(("vfio-user", path)) if !path.is_empty() => Ok(Self::VfioUser(path.into())),
            Some(("pcie", address)) => parse_pci(address).map(Self::Pcie).ok_or_else(error),
            _ => Err(error()),
        }
    }
}

/// `DDDD:BB:DD.F`, or without the domain, which is 0 then.
fn parse_pci(text: &str) -> Option<PciAddress> {
    let hex = |text: &str, digits: usize| match text.len() {
        1.. if text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(text, 16).ok()
        }
        _ => None,
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let address = PciAddress {
        domain: hex(domain, 8)?,
        bus: hex(bus, 2)? as u8,
        device: hex(device, 2)? as u8,
        function: hex(function, 1)? as u8,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl PciAddress {
    /// The function as a number below 2^48: domain times 65,536, bus times 256, device times 8, function.
    #[must_use]
    pub fn number(self) -> u64 {
        let Self { domain, bus, device, function } = self;
        let [bus, device, function] = [bus, device, function].map(u64::from);
        u64::from(domain) << 16 | bus << 8 | device << 3 | function
    }

    /// The function of a [`number`](Self::number); `None` if it is none.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        let low = number as u16;
        let domain = u32::try_from(number >> 16).ok()?;
        let [bus, device] = [(low >> 8) as u8, (low >> 3) as u8 & 0x1F];
        Some(Self { domain, bus, device, function: low as u8 & 7 })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
            Self::Pcie(address) => write!(f, "pcie:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["vfio-user:/run/vireo/vm0", "pcie:0000:01:00.0", "pcie:10000:ff:1f.7"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let short: Address = "pcie:3:0.1".parse().unwrap();
        assert_eq!(short.to_string(), "pcie:0000:03:00.1");
    }

    #[test]
    fn a_function_is_a_number_and_back() {
        let highest = PciAddress { domain: u32::MAX, bus: 0xFF, device: 0x1F, function: 7 };
        let some = PciAddress { domain: 1, bus: 2, device: 3, function: 4 };
        assert_eq!((highest.number(), some.number()), ((1 << 48) - 1, 0x1_021C));
        for address in [highest, some] {
            assert_eq!(PciAddress::from_number(address.number()), Some(address));
        }
        assert_eq!(PciAddress::from_number(1 << 48), None);
    }

    #[test]
    fn what_names_no_controller_is_refused_with_an_example() {
        for text in [
            "",
            "/run/vireo/vm0",
            "vfio-user:",
            "pcie:",
            "pcie:0:0:20.0",
            "pcie:0:0:0.8",
            "pcie:zz:0.0",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("pcie:0000:01:00.0"), "{error}");
        }
    }
}
