//! Field masks (AIP-134 and AIP-161).

use crate::grpc::error::invalid;
use prost_types::FieldMask;
use tonic::Status;

/// What a kind of resource has for fields that a caller can name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    /// The message that holds them, with a dot: `spec.`; empty for those of the resource itself.
    pub(super) below: &'static str,
    /// The fields.
    pub(super) known: &'static [&'static str],
}

impl Fields {
    /// The fields that a caller wants to change: without a mask those that are set.
    pub(super) fn named(
        &self,
        mask: Option<&FieldMask>,
        is_set: impl Fn(&str) -> bool,
    ) -> Result<Vec<&'static str>, Status> {
        let known = self.known.iter().copied();
        let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else {
            return Ok(known.filter(|field| is_set(field)).collect());
        };
        let mut named = Vec::new();
        for path in &mask.paths {
            if path == "*" || Some(path.as_str()) == self.below.strip_suffix('.') {
                return Ok(known.collect());
            }
            // What only answers have is no mistake in a mask.
            if path == "name" || path == "status" || path.starts_with("status.") {
                continue;
            }
            named.push(self.find(path).ok_or_else(|| {
                let known: Vec<_> = known.clone().map(|k| format!("{}{k}", self.below)).collect();
                let text = format!("\"{path}\" is not known; known: {}", known.join(", "));
                invalid("update_mask", text)
            })?);
        }
        Ok(named)
    }

    fn find(&self, path: &str) -> Option<&'static str> {
        let rest = path.strip_prefix(self.below)?;
        self.known.iter().copied().find(|field| *field == rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Fields = Fields { below: "spec.", known: &["nqn", "pcie_id", "psk"] };
    const FLAT: Fields = Fields { below: "", known: &["block_size"] };

    fn named(fields: Fields, paths: &[&str]) -> Result<Vec<&'static str>, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        fields.named(Some(&FieldMask { paths }), |field| field == "nqn" || field == "block_size")
    }

    #[test]
    fn a_mask_names_fields_or_all_or_those_that_are_set() {
        assert_eq!(named(SPEC, &[]).unwrap(), ["nqn"]);
        assert_eq!(SPEC.named(None, |_| false).unwrap(), Vec::<&str>::new());
        for all in ["*", "spec"] {
            assert_eq!(named(SPEC, &[all]).unwrap(), ["nqn", "pcie_id", "psk"]);
        }
        assert_eq!(named(SPEC, &["spec.psk", "name", "status.x"]).unwrap(), ["psk"]);
        assert_eq!(named(FLAT, &["block_size"]).unwrap(), ["block_size"]);
        assert_eq!(named(FLAT, &["*"]).unwrap(), ["block_size"]);
    }

    #[test]
    fn an_unknown_path_is_named() {
        for wrong in ["nqn", "spec.nothing", "spec.nqn.x", "", "specs", "spec.pcie_idx"] {
            let status = named(SPEC, &["spec.psk", wrong]).unwrap_err();
            assert!(status.message().starts_with("update_mask: "), "{wrong}: {status:?}");
        }
        assert!(named(FLAT, &["spec"]).is_err());
        assert!(named(FLAT, &["block_size.x"]).is_err());
    }
}
