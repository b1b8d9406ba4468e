//! Limits: how many commands and bytes a second a namespace or an endpoint may do.

use super::section::Section;
use super::units::format_size;
use std::fmt;
use toml::{Table, Value};

/// Commands a second that a limit may say. At the highest one a command costs a hundred nanoseconds, and costs are kept in
/// whole ones.
pub const IOPS: (u64, u64) = (1, 10_000_000);
/// Bytes a second that a limit may say. At the lowest the largest transfer, 4 MiB, takes a minute.
pub const BANDWIDTH: (u64, u64) = (64 << 10, 100 << 30);
/// The keys, in the order of [`Limits::values`].
pub const KEYS: [&str; 6] =
    ["iops", "read_iops", "write_iops", "bandwidth", "read_bandwidth", "write_bandwidth"];
/// How many of [`KEYS`] are of commands; the others are of bytes.
const OF_COMMANDS: usize = 3;

/// What may be done in a second; absent is without a limit. Each holds beside the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Commands of all kinds.
    pub iops: Option<u64>,
    /// Commands that read: Read, Compare, Verify.
    pub read_iops: Option<u64>,
    /// Commands that write: Write, Write Zeroes, Copy, and a fused pair.
    pub write_iops: Option<u64>,
    /// Bytes that are read and written.
    pub bandwidth: Option<u64>,
    /// Bytes that are read.
    pub read_bandwidth: Option<u64>,
    /// Bytes that are written.
    pub write_bandwidth: Option<u64>,
}

impl Limits {
    /// In the order of [`KEYS`].
    pub fn values(&self) -> [Option<u64>; 6] {
        [
            self.iops,
            self.read_iops,
            self.write_iops,
            self.bandwidth,
            self.read_bandwidth,
            self.write_bandwidth,
        ]
    }

    /// From values in the order of [`KEYS`].
    pub fn from_values(values: [Option<u64>; 6]) -> Self {
        let [iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth] = values;
        Self { iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth }
    }

    /// True if nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("none");
        }
        let mut comma = "";
        for (index, (key, value)) in KEYS.iter().zip(self.values()).enumerate() {
            let Some(value) = value else { continue };
            match index < OF_COMMANDS {
                true => write!(f, "{comma}{key} {value}")?,
                false => write!(f, "{comma}{key} {}", format_size(value))?,
            }
            comma = ", ";
        }
        Ok(())
    }
}

/// The table `limits` of a namespace or an endpoint; none if it is not there.
pub(super) fn parse(of: &Section<'_>) -> Limits {
    let Some(section) = of.section("limits") else { return Limits::default() };
    let mut values = [None; 6];
    for (index, (key, value)) in KEYS.into_iter().zip(&mut values).enumerate() {
        *value = match index < OF_COMMANDS {
            true => section.integer(key, IOPS.0..=IOPS.1),
            false => bandwidth(&section, key),
        };
    }
    section.finish(&[]);
    Limits::from_values(values)
}

fn bandwidth(section: &Section<'_>, key: &'static str) -> Option<u64> {
    let value = section.size(key)?;
    if (BANDWIDTH.0..=BANDWIDTH.1).contains(&value) {
        return Some(value);
    }
    let (low, high) = (format_size(BANDWIDTH.0), format_size(BANDWIDTH.1));
    let right = format!("write bytes a second from \"{low}\" to \"{high}\"");
    section.wrong(key, format!("{} is out of range", format_size(value)), right);
    None
}

/// As [`parse`] reads it; nothing where nothing is limited.
pub(super) fn print(limits: &Limits) -> Option<(&'static str, Value)> {
    if limits.is_none() {
        return None;
    }
    let mut table = Table::new();
    for (index, (key, value)) in KEYS.into_iter().zip(limits.values()).enumerate() {
        let Some(value) = value else { continue };
        let value = match index < OF_COMMANDS {
            // At most `IOPS.1`.
            true => Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)),
            false => Value::String(format_size(value)),
        };
        table.insert(key.to_owned(), value);
    }
    Some(("limits", Value::Table(table)))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn config(namespace: &str, endpoint: &str) -> Result<Config, Vec<super::super::Mistake>> {
        let text = format!(
            "[[worker]]\nname = \"w0\"\n[[backend]]\nname = \"b0\"\n[[frontend]]\nname = \"f0\"\n\
             [[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\n\
             [[subsystem]]\nname = \"s0\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n{namespace}\n\
             [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n{endpoint}\n"
        );
        Config::parse(&text, [])
    }

    #[test]
    fn limits_are_read_and_printed() {
        let config = config(
            "limits = { iops = 5000, write_bandwidth = \"10MiB\" }",
            "limits = { read_iops = 7, bandwidth = 1000000 }",
        )
        .unwrap();
        let namespace = config.subsystems[0].namespaces[0].limits;
        let expected =
            Limits { iops: Some(5000), write_bandwidth: Some(10 << 20), ..Limits::default() };
        assert_eq!(namespace, expected);
        assert_eq!(namespace.to_string(), "iops 5000, write_bandwidth 10MiB");
        assert_eq!(config.endpoints[0].limits.bandwidth, Some(1_000_000));
        assert_eq!(Config::parse(&config.to_toml(), []).unwrap(), config);
        assert_eq!(Limits::default().to_string(), "none");
    }

    #[test]
    fn each_mistake_names_its_key() {
        for (text, key) in [
            ("limits = { iops = 0 }", "limits.iops"),
            ("limits = { iops = -5 }", "limits.iops"),
            ("limits = { iops = 10000001 }", "limits.iops"),
            ("limits = { bandwidth = \"1KiB\" }", "limits.bandwidth"),
            ("limits = { bandwidth = 0 }", "limits.bandwidth"),
            ("limits = { read_bandwidth = \"1TiB\" }", "limits.read_bandwidth"),
            ("limits = { iopps = 3 }", "limits.iopps"),
            ("limits = 5", "limits"),
        ] {
            let mistakes = config(text, "").unwrap_err();
            assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
            assert_eq!(mistakes[0].key, format!("subsystem[0].namespace[0].{key}"));
            let mistakes = config("", text).unwrap_err();
            assert_eq!(mistakes[0].key, format!("endpoint[0].{key}"));
        }
        assert!(config("limits = {}", "").unwrap().subsystems[0].namespaces[0].limits.is_none());
    }
}
