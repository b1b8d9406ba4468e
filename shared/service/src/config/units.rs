//! Sizes and durations as a person writes them, and back.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];
const DURATION_UNITS: [(&str, u64); 5] =
    [("ns", 1), ("us", 1_000), ("µs", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

/// Bytes from `"256MiB"`; `None` if it is no size or does not fit into 64 bits. Fractions are not taken: they hide
/// rounding.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZE_UNITS)
}

/// A duration from `"500us"`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATION_UNITS).map(Duration::from_nanos)
}

/// The shortest exact way to write a size.
pub fn format_size(bytes: u64) -> String {
    SIZE_UNITS[..4]
        .iter()
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| format!("{bytes}B"), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// The shortest exact way to write a duration.
pub fn format_duration(duration: Duration) -> String {
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let units = [DURATION_UNITS[4], DURATION_UNITS[3], DURATION_UNITS[1]];
    units.iter().find(|(_, factor)| nanoseconds.is_multiple_of(*factor)).map_or_else(
        || format!("{nanoseconds}ns"),
        |(unit, f)| format!("{}{unit}", nanoseconds / f),
    )
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.replace('_', "").parse().ok()?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_fit() {
        assert_eq!(parse_size("256MiB"), Some(256 << 20));
        assert_eq!(parse_size("1 GiB"), Some(1 << 30));
        assert_eq!(parse_size("1_000kB"), Some(1_000_000));
        assert_eq!(parse_size("512B"), Some(512));
        for bad in ["", "MiB", "1.5GiB", "-1MiB", "256", "256 mib", "99999999TiB", "1MiBx", "_B"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("500us"), Some(Duration::from_micros(500)));
        assert_eq!(parse_duration("2 s"), Some(Duration::from_secs(2)));
        for bad in ["5", "5m", "1.5s", "99999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for bytes in [0, 1, 511, 512, 1024, 1 << 20, 3 << 30, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
        }
        for nanoseconds in [0, 1, 1500, 10_000, 500_000, 2_000_000_000] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
        assert_eq!(format_size(256 << 20), "256MiB");
        assert_eq!(format_duration(Duration::from_micros(500)), "500us");
    }
}
