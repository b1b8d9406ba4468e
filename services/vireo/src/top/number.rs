//! Numbers in few characters, for columns.

/// What stands where nothing is known.
pub const UNKNOWN: &str = "-";

/// A count or a rate in at most six characters: `0`, `0.4`, `870`, `9870`, `12.3k`, `1.23M`.
#[must_use]
pub fn count(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return UNKNOWN.to_owned() };
    match value {
        ..0.05 => "0".to_owned(),
        0.05..9.95 if value.fract() > 0.05 && value.fract() < 0.95 => format!("{value:.1}"),
        ..9999.5 => format!("{value:.0}"),
        _ => with_unit(value, 1000.0, &["k", "M", "G", "T", "P", "E"]),
    }
}

/// How many at a time, in at most five characters: `0.03`, `1.40`, `12.3`, `512`.
#[must_use]
pub fn depth(value: Option<f64>) -> String {
    match value {
        Some(value) if value > 0.005 && value < 9999.5 => three_digits(value),
        value => count(value),
    }
}

/// Bytes in at most five characters: `0`, `512`, `48.2M`. Units are powers of 1024.
#[must_use]
pub fn bytes(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return UNKNOWN.to_owned() };
    match value {
        ..0.5 => "0".to_owned(),
        ..1023.5 => format!("{value:.0}"),
        _ => with_unit(value, 1024.0, &["K", "M", "G", "T", "P", "E"]),
    }
}

/// Nanoseconds in at most six characters: `640ns`, `83.2us`, `1.20s`.
#[must_use]
pub fn nanos(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return UNKNOWN.to_owned() };
    match value {
        ..999.5 => format!("{:.0}ns", value.max(0.0)),
        ..999.5e3 => format!("{}us", three_digits(value / 1e3)),
        ..999.5e6 => format!("{}ms", three_digits(value / 1e6)),
        _ => format!("{}s", three_digits(value / 1e9)),
    }
}

/// A part of 100: `0%`, `0.4%`, `43%`, `100%`.
#[must_use]
pub fn percent(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return UNKNOWN.to_owned() };
    match value {
        ..0.05 => "0%".to_owned(),
        0.05..9.95 => format!("{value:.1}%"),
        _ => format!("{value:.0}%"),
    }
}

fn with_unit(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = "";
    for next in units {
        // As it would be rounded.
        if value < base - 0.5 {
            break;
        }
        value /= base;
        unit = next;
    }
    format!("{}{unit}", three_digits(value))
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_into_their_columns() {
        let counts =
            [0.0, 0.04, 0.4, 1.0, 9.97, 870.0, 9_999.6, 12_345.0, 999_600.0, 1.234e6, 1e18];
        let shown = counts.map(|value| count(Some(value)));
        assert_eq!(
            shown,
            ["0", "0", "0.4", "1", "10", "870", "10.0k", "12.3k", "1.00M", "1.23M", "1.00E"]
        );
        let sizes = [0.0, 512.0, 1023.7, 4096.0, 48.2 * 1_048_576.0, 1.07e9];
        assert_eq!(sizes.map(|v| bytes(Some(v))), ["0", "512", "1.00K", "4.00K", "48.2M", "1020M"]);
        let times = [0.0, 640.0, 999.7, 83_200.0, 412_400.0, 10.77e6, 1.2e9, 4e12];
        let shown = times.map(|value| nanos(Some(value)));
        assert_eq!(
            shown,
            ["0ns", "640ns", "1.00us", "83.2us", "412us", "10.8ms", "1.20s", "4000s"]
        );
        assert_eq!(
            [0.0, 0.4, 43.2, 100.0].map(|v| percent(Some(v))),
            ["0%", "0.4%", "43%", "100%"]
        );
        let depths = [0.0, 0.001, 0.029, 1.4, 12.34, 512.0, 1e6];
        assert_eq!(
            depths.map(|value| depth(Some(value))),
            ["0", "0", "0.03", "1.40", "12.3", "512", "1.00M"]
        );
        for odd in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            let shown = [count(odd), bytes(odd), nanos(odd), percent(odd), depth(odd)];
            assert_eq!(shown, [UNKNOWN; 5]);
        }
    }
}
