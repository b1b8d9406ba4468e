//! Limits of rate: OPI counts in thousands of commands and millions of bytes.

use crate::grpc::error::invalid;
use service::config::{LIMIT_KEYS, Limits};
use tonic::Status;
use vireo_api::opi::QosLimit;

/// The fields of the message in the order of [`LIMIT_KEYS`], each with what one of it is.
const FIELDS: [(&str, u64); 6] = [
    ("rw_iops_kiops", 1_000),
    ("rd_iops_kiops", 1_000),
    ("wr_iops_kiops", 1_000),
    ("rw_bandwidth_mbs", 1_000_000),
    ("rd_bandwidth_mbs", 1_000_000),
    ("wr_bandwidth_mbs", 1_000_000),
];

/// What `wanted`, which stands in `field`, limits; 0 is no limit.
pub(super) fn parse(field: &str, wanted: Option<&QosLimit>) -> Result<Limits, Status> {
    let mut values = [None; 6];
    let given = wanted.map(numbers).unwrap_or_default();
    for ((value, given), (name, unit)) in values.iter_mut().zip(given).zip(FIELDS) {
        let number = u64::try_from(given).ok().and_then(|number| number.checked_mul(unit));
        let number = number.ok_or_else(|| {
            invalid(format!("{field}.{name}"), "is out of range; write 0 for no limit, or more")
        })?;
        *value = (number > 0).then_some(number);
    }
    Ok(Limits::from_values(values))
}

/// Limits as a message; `None` where nothing is limited. What was limited more finely is rounded up.
pub(super) fn told(limits: &Limits) -> Option<QosLimit> {
    let mut numbers = [0; 6];
    for ((number, value), (_, unit)) in numbers.iter_mut().zip(limits.values()).zip(FIELDS) {
        *number = i64::try_from(value.unwrap_or(0).div_ceil(unit)).unwrap_or(i64::MAX);
    }
    let [
        rw_iops_kiops,
        rd_iops_kiops,
        wr_iops_kiops,
        rw_bandwidth_mbs,
        rd_bandwidth_mbs,
        wr_bandwidth_mbs,
    ] = numbers;
    (!limits.is_none()).then_some(QosLimit {
        rd_iops_kiops,
        wr_iops_kiops,
        rw_iops_kiops,
        rd_bandwidth_mbs,
        wr_bandwidth_mbs,
        rw_bandwidth_mbs,
    })
}

/// The rest of the field's path for a key of the configuration: `.rw_iops_kiops` for `limits.iops`.
pub(super) fn field(key: &str) -> String {
    let key = key.strip_prefix("limits.");
    let index = LIMIT_KEYS.iter().position(|known| Some(*known) == key);
    let field = index.and_then(|index| FIELDS.get(index));
    field.map_or_else(String::new, |(name, _)| format!(".{name}"))
}

fn numbers(limit: &QosLimit) -> [i64; 6] {
    let QosLimit {
        rd_iops_kiops,
        wr_iops_kiops,
        rw_iops_kiops,
        rd_bandwidth_mbs,
        wr_bandwidth_mbs,
        rw_bandwidth_mbs,
    } = *limit;
    [
        rw_iops_kiops,
        rd_iops_kiops,
        wr_iops_kiops,
        rw_bandwidth_mbs,
        rd_bandwidth_mbs,
        wr_bandwidth_mbs,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_as_they_were_given() {
        let given = QosLimit { rd_iops_kiops: 3, wr_bandwidth_mbs: 200, ..QosLimit::default() };
        let limits = parse("f", Some(&given)).unwrap();
        assert_eq!((limits.read_iops, limits.write_bandwidth), (Some(3_000), Some(200_000_000)));
        assert_eq!((limits.iops, limits.bandwidth), (None, None));
        assert_eq!(told(&limits), Some(given));
        assert_eq!(told(&Limits { iops: Some(1_001), ..limits }).unwrap().rw_iops_kiops, 2);
        for none in [None, Some(&QosLimit::default())] {
            assert_eq!(parse("f", none).unwrap(), Limits::default());
        }
        assert_eq!(told(&Limits::default()), None);
    }

    #[test]
    fn what_is_no_limit_is_named() {
        for wrong in [-1, i64::MAX, i64::MIN] {
            let given = QosLimit { rw_bandwidth_mbs: wrong, ..QosLimit::default() };
            let status = parse("f", Some(&given)).unwrap_err();
            assert!(status.message().starts_with("f.rw_bandwidth_mbs: "), "{status:?}");
        }
        assert_eq!(field("limits.iops"), ".rw_iops_kiops");
        assert_eq!(field("limits.write_bandwidth"), ".wr_bandwidth_mbs");
        assert_eq!(field("limits"), "");
    }
}
