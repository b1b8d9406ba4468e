//! Sizes, rates, durations and lists of cores as people write them.

use std::time::Duration;

/// Bytes: `4096`, `4k`, `4KiB`, `1MiB`, `2G`. Units are powers of 1024.
///
/// # Errors
/// A line that says what would be right.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let remedy = || format!("{text:?} is no size: write 4096, 4KiB, 1MiB or 2GiB");
    let (number, unit) = split(text).ok_or_else(remedy)?;
    let number: u64 = number.parse().map_err(|_| remedy())?;
    let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix("ib")).unwrap_or(unit);
    let shift = match unit {
        "" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return Err(remedy()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 64 bits hold"))
}

/// A number per second: `5000`, `50k`, `1.5M`. Units are powers of 1000.
///
/// # Errors
/// A line that says what would be right.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let remedy = || format!("{text:?} is no rate: write 5000, 50k or 1.5M (I/Os a second)");
    let (number, unit) = split(text).ok_or_else(remedy)?;
    let number: f64 = number.parse().map_err(|_| remedy())?;
    let factor = match unit {
        "" => 1.0,
        "k" | "K" => 1e3,
        "m" | "M" => 1e6,
        _ => return Err(remedy()),
    };
    let rate = number * factor;
    if (1.0..=1e9).contains(&rate) { Ok(rate) } else { Err(remedy()) }
}

/// A duration: `10s`, `500ms`, `2m`, `1h`, or a plain number of seconds. At most a week.
///
/// # Errors
/// A line that says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const MAX: f64 = 7.0 * 86_400.0;
    let remedy = || format!("{text:?} is no duration: write 500ms, 10s, 2m or 1h (at most 7 days)");
    let (number, unit) = split(text).ok_or_else(remedy)?;
    let number: f64 = number.parse().map_err(|_| remedy())?;
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(remedy()),
    };
    let seconds = number * factor;
    if (0.0..=MAX).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(remedy())
    }
}

/// Numbers of processors, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

/// Cores: `0`, `1,3`, `0,2-5`, each once.
///
/// # Errors
/// A line that says what would be right.
pub fn parse_cores(text: &str) -> Result<CoreList, String> {
    /// More than any machine has; bounds what a range makes.
    const CORE_MAX: usize = 4095;
    let remedy = || format!("{text:?} is no list of cores: write 1, 0,2 or 2-5, each core once");
    let core = |text: &str| match text.trim().parse::<usize>() {
        Ok(core) if core <= CORE_MAX => Ok(core),
        _ => Err(remedy()),
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (core(first)?, core(last)?);
        if first > last {
            return Err(remedy());
        }
        cores.extend(first..=last);
    }
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() == cores.len() { Ok(CoreList(cores)) } else { Err(remedy()) }
}

/// Bytes as a person reads them: `4 KiB`, `1.50 GiB`; exact powers without a fraction.
#[must_use]
pub fn show_size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// A count as a person reads it: `870`, `12.3 k`, `11.02 M`.
#[must_use]
pub fn show_count(count: f64) -> String {
    match count {
        0.0..1e4 => format!("{count:.0}"),
        1e4..1e6 => format!("{:.1} k", count / 1e3),
        _ => format!("{:.2} M", count / 1e6),
    }
}

/// Nanoseconds as a person reads them: `640 ns`, `12.3 us`, `4.56 ms`, `1.20 s`.
#[must_use]
pub fn show_nanos(nanos: f64) -> String {
    match nanos {
        0.0..1e3 => format!("{nanos:.0} ns"),
        1e3..1e6 => format!("{:.2} us", nanos / 1e3),
        1e6..1e9 => format!("{:.2} ms", nanos / 1e6),
        _ => format!("{:.2} s", nanos / 1e9),
    }
}

/// The leading number and the unit behind it.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    if end == 0 { None } else { Some((&text[..end], text[end..].trim_start())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, size) in [
            ("512", 512),
            ("4k", 4096),
            ("4KiB", 4096),
            ("1 MiB", 1 << 20),
            ("2G", 2 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "k", "-1", "4.5k", "4kk", "4 XiB", "99999999999999999999", "99999999999G"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_read_in_powers_of_1000() {
        assert_eq!(parse_rate("50k"), Ok(50_000.0));
        assert_eq!(parse_rate("1.5M"), Ok(1_500_000.0));
        for text in ["0", "0.5", "-1", "nan", "inf", "5G", ""] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units_and_a_limit() {
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for text in ["", "s", "-1s", "1y", "1e400", "8000h", "1.2.3"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_come_as_numbers_and_ranges_each_once() {
        assert_eq!(parse_cores("3,0-1"), Ok(CoreList(vec![3, 0, 1])));
        for text in ["", ",", "1,1", "0-2,2", "3-1", "a", "0-", "99999"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_has_the_unit_that_fits() {
        assert_eq!(show_size(4096.0), "4 KiB");
        assert_eq!(show_size(1.5 * 1024.0 * 1024.0), "1.50 MiB");
        assert_eq!(show_count(11_020_000.0), "11.02 M");
        assert_eq!(show_nanos(640.0), "640 ns");
        assert_eq!(show_nanos(12_300.0), "12.30 us");
    }
}
