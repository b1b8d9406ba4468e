//! Where a controller is: PCI functions as directories of endpoints.

use crate::grpc::error::invalid;
use std::path::Path;
use tonic::Status;
use vireo_api::opi::nvme_controller_spec::Endpoint;
use vireo_api::opi::{NvmeTransportType, PciEndpoint};

/// What the names of such directories begin with.
const PREFIX: &str = "pcie-";

/// A PCI function. Its text is the name of its endpoint's directory: `pcie-0.0.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    port: u32,
    physical: u32,
    r#virtual: u32,
}

impl Place {
    /// The place that a request names, if it names one. `spec` is the field that holds the message.
    pub(super) fn wanted(spec: &str, endpoint: Option<&Endpoint>) -> Result<Option<Self>, Status> {
        let pcie = match endpoint {
            None => return Ok(None),
            Some(Endpoint::FabricsId(_)) => {
                let text = "NVMe over Fabrics is not served; give pcie_id";
                return Err(invalid(format!("{spec}.fabrics_id"), text));
            }
            Some(Endpoint::PcieId(pcie)) => pcie,
        };
        let number = |field: &str, value: Option<i32>| {
            let field = format!("{spec}.pcie_id.{field}");
            let value = value.ok_or_else(|| invalid(field.as_str(), "is missing; write 0 or more"));
            u32::try_from(value?).map_err(|_| invalid(field, "is negative; write 0 or more"))
        };
        Ok(Some(Self {
            port: number("port_id", pcie.port_id)?,
            physical: number("physical_function", pcie.physical_function)?,
            r#virtual: number("virtual_function", pcie.virtual_function)?,
        }))
    }

    /// The place of the endpoint in the directory `path`, if it has the name of one.
    pub(super) fn of(path: &Path, runtime_dir: &Path) -> Option<Self> {
        let name = path.strip_prefix(runtime_dir).ok()?.to_str()?;
        let mut numbers = name.strip_prefix(PREFIX)?.splitn(3, '.').map(str::parse);
        let place = Self {
            port: numbers.next()?.ok()?,
            physical: numbers.next()?.ok()?,
            r#virtual: numbers.next()?.ok()?,
        };
        // One name for one place: no leading zeroes or signs.
        (place.to_string() == name).then_some(place)
    }

    /// The place as a message has it.
    pub(super) fn message(self) -> Endpoint {
        let number = |value: u32| Some(i32::try_from(value).unwrap_or(i32::MAX));
        Endpoint::PcieId(PciEndpoint {
            port_id: number(self.port),
            physical_function: number(self.physical),
            virtual_function: number(self.r#virtual),
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}.{}.{}", self.port, self.physical, self.r#virtual)
    }
}

/// Only PCIe is served.
pub(super) fn check_transport(spec: &str, trtype: i32) -> Result<(), Status> {
    let wrong = |text: &str| Err(invalid(format!("{spec}.trtype"), text));
    match NvmeTransportType::try_from(trtype) {
        Ok(NvmeTransportType::Pcie) => Ok(()),
        Ok(NvmeTransportType::Unspecified) => wrong("is missing; write NVME_TRANSPORT_TYPE_PCIE"),
        Ok(
            NvmeTransportType::Fc
            | NvmeTransportType::Rdma
            | NvmeTransportType::Tcp
            | NvmeTransportType::Custom,
        )
        | Err(_) => wrong("is not served; write NVME_TRANSPORT_TYPE_PCIE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_api::opi::FabricsEndpoint;

    fn pcie(port_id: i32, physical_function: i32, virtual_function: i32) -> Endpoint {
        Endpoint::PcieId(PciEndpoint {
            port_id: Some(port_id),
            physical_function: Some(physical_function),
            virtual_function: Some(virtual_function),
        })
    }

    #[test]
    fn a_function_is_a_directory_and_the_directory_the_function() {
        for (endpoint, name) in [
            (pcie(0, 0, 0), "pcie-0.0.0"),
            (pcie(1, 2, 3), "pcie-1.2.3"),
            (pcie(i32::MAX, 0, 10), "pcie-2147483647.0.10"),
        ] {
            let place = Place::wanted("spec", Some(&endpoint)).unwrap().unwrap();
            assert_eq!(place.to_string(), name);
            let path = Path::new("/run/vireo").join(name);
            let again = Place::of(&path, Path::new("/run/vireo")).unwrap();
            assert_eq!(again.message(), endpoint);
        }
        for other in ["vm0", "pcie-0.0", "pcie-00.0.0", "pcie-+1.0.0", "pcie-0.0.0.0", "pcie-0.0.x"]
        {
            let path = Path::new("/run/vireo").join(other);
            assert_eq!(Place::of(&path, Path::new("/run/vireo")), None, "{other}");
        }
        for other in ["/run/other/pcie-0.0.0", "/run/vireo/x/pcie-0.0.0"] {
            assert_eq!(Place::of(Path::new(other), Path::new("/run/vireo")), None);
        }
    }

    #[test]
    fn what_is_missing_or_not_served_is_named() {
        assert_eq!(Place::wanted("spec", None).unwrap(), None);
        let lacks =
            Endpoint::PcieId(PciEndpoint { virtual_function: None, ..PciEndpoint::default() });
        let fabrics = Endpoint::FabricsId(FabricsEndpoint::default());
        for (wrong, field) in [
            (lacks, "spec.pcie_id.port_id"),
            (pcie(0, -1, 0), "spec.pcie_id.physical_function"),
            (fabrics, "spec.fabrics_id"),
        ] {
            let status = Place::wanted("spec", Some(&wrong)).unwrap_err();
            assert!(status.message().starts_with(field), "{status:?}");
        }
        assert!(check_transport("spec", NvmeTransportType::Pcie.into()).is_ok());
        for wrong in [0, 1, 3, 4, 5, 6, -1] {
            assert!(check_transport("spec", wrong).is_err());
        }
    }
}
