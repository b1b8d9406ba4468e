//! Limits in messages, and the fields of a namespace or a controller that can change: its limits, and nothing else.

use super::error;
use prost_types::FieldMask;
use service::config::{LIMIT_KEYS, Limits};
use tonic::Status;
use vireo_api::v1;

/// The field with the limits.
const FIELD: &str = "limits";

/// What a caller wants of `field`, as the configuration has it. What the configuration can say of it is checked there.
pub(super) fn parse(field: &str, wanted: Option<&v1::Limits>) -> Result<Limits, Status> {
    let Some(wanted) = wanted else { return Ok(Limits::default()) };
    let mut wrong = Vec::new();
    let mut values = [None; LIMIT_KEYS.len()];
    for ((key, value), given) in LIMIT_KEYS.iter().zip(&mut values).zip(given(wanted)) {
        match given.map(u64::try_from) {
            None => {}
            Some(Ok(limit)) if limit > 0 => *value = Some(limit),
            Some(_) => wrong.push((
                format!("{field}.{key}"),
                "is no limit; give more than 0, nothing for no limit, or pause the controller"
                    .to_owned(),
            )),
        }
    }
    if wrong.is_empty() { Ok(Limits::from_values(values)) } else { Err(error::invalid_all(wrong)) }
}

/// Limits as a caller sees them; nothing where nothing is limited.
pub(super) fn shown(limits: &Limits) -> Option<v1::Limits> {
    // What is configured is below that.
    let value = |limit: Option<u64>| limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
    let [iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth] =
        limits.values().map(value);
    (!limits.is_none()).then_some(v1::Limits {
        iops,
        read_iops,
        write_iops,
        bandwidth,
        read_bandwidth,
        write_bandwidth,
    })
}

/// What an update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    Nothing,
    /// All limits; what is not given is no limit any more.
    All,
    /// These of [`LIMIT_KEYS`], by index.
    Some(Vec<usize>),
}

impl Change {
    /// What the mask of an update names, or what is set where it names nothing.
    pub(super) fn of(
        mask: Option<&FieldMask>,
        wanted: Option<&v1::Limits>,
    ) -> Result<Self, Status> {
        let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
        if paths.is_empty() {
            let Some(wanted) = wanted else { return Ok(Self::Nothing) };
            let set = given(wanted).into_iter().enumerate().filter(|(_, value)| value.is_some());
            return Ok(Self::Some(set.map(|(index, _)| index).collect()));
        }
        let mut some = Vec::new();
        for path in paths {
            match path.strip_prefix(FIELD).map(|rest| rest.strip_prefix('.')) {
                Some(None) if path == FIELD => return Ok(Self::All),
                Some(Some(key)) if LIMIT_KEYS.contains(&key) => {
                    some.extend(LIMIT_KEYS.iter().position(|known| *known == key));
                }
                _ if path == "*" && paths.len() == 1 => return Ok(Self::All),
                _ => {
                    let keys = LIMIT_KEYS.map(|key| format!("{FIELD}.{key}")).join(", ");
                    let text = format!("\"{path}\" cannot change; known: {FIELD}, {keys}");
                    return Err(error::invalid("update_mask", text));
                }
            }
        }
        Ok(Self::Some(some))
    }

    /// The limits after the change.
    pub(super) fn apply(&self, now: Limits, wanted: Limits) -> Limits {
        match self {
            Self::Nothing => now,
            Self::All => wanted,
            Self::Some(indexes) => {
                let (mut values, wanted) = (now.values(), wanted.values());
                for &index in indexes {
                    if let (Some(value), Some(wanted)) = (values.get_mut(index), wanted.get(index))
                    {
                        *value = *wanted;
                    }
                }
                Limits::from_values(values)
            }
        }
    }
}

/// In the order of [`LIMIT_KEYS`].
fn given(limits: &v1::Limits) -> [Option<i64>; LIMIT_KEYS.len()] {
    let v1::Limits { iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth } =
        *limits;
    [iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth]
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    fn mask(paths: &[&str]) -> FieldMask {
        FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }
    }

    #[test]
    fn limits_are_above_nothing_and_each_mistake_is_named() {
        let limits = v1::Limits {
            iops: Some(0),
            read_iops: Some(-1),
            bandwidth: Some(5),
            ..Default::default()
        };
        let status = parse("namespace.limits", Some(&limits)).unwrap_err();
        let details = status.get_error_details();
        let fields: Vec<_> =
            details.bad_request().unwrap().field_violations.iter().map(|v| &v.field).collect();
        assert_eq!(fields, ["namespace.limits.iops", "namespace.limits.read_iops"]);
        let limits = v1::Limits { write_bandwidth: Some(1 << 20), ..Default::default() };
        let parsed = parse("x", Some(&limits)).unwrap();
        assert_eq!(shown(&parsed), Some(limits));
        assert_eq!(
            (parse("x", None).unwrap(), shown(&Limits::default())),
            (Limits::default(), None)
        );
    }

    #[test]
    fn a_mask_names_what_changes() {
        let now = Limits { iops: Some(1), bandwidth: Some(2), ..Limits::default() };
        let given = v1::Limits { iops: Some(7), read_iops: Some(8), ..Default::default() };
        let wanted = parse("x", Some(&given)).unwrap();
        let after = |paths: &[&str]| {
            Change::of(Some(&mask(paths)), Some(&given)).unwrap().apply(now, wanted)
        };
        assert_eq!(after(&["limits"]), wanted);
        assert_eq!(after(&["*"]), wanted);
        assert_eq!(after(&["limits.iops"]), Limits { iops: Some(7), ..now });
        assert_eq!(after(&["limits.bandwidth"]), Limits { bandwidth: None, ..now });
        assert_eq!(after(&[]), Limits { iops: Some(7), read_iops: Some(8), ..now });
        assert_eq!(Change::of(None, None).unwrap(), Change::Nothing);
        for wrong in ["path", "limits.iopss", "limitsiops", "limits.", ""] {
            let status = Change::of(Some(&mask(&[wrong])), Some(&given)).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{wrong}");
        }
    }
}
