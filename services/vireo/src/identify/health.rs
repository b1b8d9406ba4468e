//! Power and health.

use nvme_spec::identify::power::PowerState;
use nvme_spec::log_page::smart::SmartHealth;
use serde_json::{Value, json};

use super::controller::{bytes, counted, some};
use super::fact::{Place, Section};
use super::feature::celsius;
use super::snapshot::Snapshot;

/// Bytes of a data unit: 1000 times 512.
const DATA_UNIT: u64 = 512_000;
/// Units of power in watts: fine and coarse.
const FINE: f64 = 0.0001;
const COARSE: f64 = 0.01;

/// Power states and temperatures.
pub(super) fn power(snapshot: &Snapshot) -> Section {
    let identify = &snapshot.controller;
    let mut section = Section::new("Power", Place::Object("power"));
    let count = usize::from(identify.npss_z) + 1;
    let states: Vec<_> = identify.psd.iter().take(count).enumerate().collect();
    let lines: Vec<_> = states.iter().map(|(index, state)| state_text(*index, state)).collect();
    let list: Vec<_> = states.iter().map(|(index, state)| state_json(*index, state)).collect();
    section.fact("power states", lines.join("\n"), [("states", Value::Array(list))]);
    let thresholds = [("warning", identify.wctemp), ("critical", identify.cctemp)];
    let known: Vec<_> = thresholds
        .iter()
        .filter(|(_, kelvins)| *kelvins != 0)
        .map(|(name, kelvins)| format!("{name} at {}", celsius(*kelvins)))
        .collect();
    let text = if known.is_empty() { "not reported".to_owned() } else { known.join(", ") };
    section.fact(
        "temperature limits",
        text,
        [
            ("warning_temperature_kelvin", some(identify.wctemp.into())),
            ("critical_temperature_kelvin", some(identify.cctemp.into())),
        ],
    );
    section
}

/// Most power of a state; `None` if it is not reported.
fn max_watts(state: &PowerState) -> Option<f64> {
    let unit = if state.flags.mxps() { FINE } else { COARSE };
    (state.mp != 0).then(|| round(f64::from(state.mp) * unit))
}

/// Power with a scale of its own; `None` if it is not reported.
fn scaled_watts(value: u16, scale: u8) -> Option<f64> {
    match scale {
        1 => Some(round(f64::from(value) * FINE)),
        2 => Some(round(f64::from(value) * COARSE)),
        _ => None,
    }
}

/// To the finest unit, without what a product of fractions leaves behind.
fn round(watts: f64) -> f64 {
    (watts / FINE).round() / (1.0 / FINE).round()
}

fn state_text(index: usize, state: &PowerState) -> String {
    let watts = |watts: Option<f64>, name: &str| watts.map(|watts| format!("{watts} W {name}"));
    let kind = if state.flags.nops() { "without I/O" } else { "with I/O" };
    let power = watts(max_watts(state), "at most");
    let idle = watts(scaled_watts(state.idlp, state.idle_scale.ips()), "idle");
    let active = watts(scaled_watts(state.actp, state.active.aps()), "active");
    let latency = |micros: u32, name: &str| (micros != 0).then(|| format!("{micros} us {name}"));
    let (enter, leave) = (latency(state.enlat, "to enter"), latency(state.exlat, "to leave"));
    let mut parts = vec![kind.to_owned()];
    parts.push(power.unwrap_or_else(|| "power not reported".to_owned()));
    parts.extend([idle, active, enter, leave].into_iter().flatten());
    format!("{index}: {}", parts.join(", "))
}

fn state_json(index: usize, state: &PowerState) -> Value {
    json!({
        "index": index,
        "operational": !state.flags.nops(),
        "max_watts": max_watts(state),
        "idle_watts": scaled_watts(state.idlp, state.idle_scale.ips()),
        "active_watts": scaled_watts(state.actp, state.active.aps()),
        "entry_latency_us": state.enlat,
        "exit_latency_us": state.exlat,
        "relative_read_throughput": state.rrt,
        "relative_read_latency": state.rrl,
        "relative_write_throughput": state.rwt,
        "relative_write_latency": state.rwl,
    })
}

/// SMART / Health Information.
pub(super) fn smart(snapshot: &Snapshot) -> Section {
    let mut section = Section::new("Health (SMART)", Place::Object("smart"));
    let Some(smart) = snapshot.logs.smart.given() else {
        let why = snapshot.logs.smart.why_not().unwrap_or_default();
        section.fact("log page", why, [("supported", json!(false))]);
        return section;
    };
    warnings(&mut section, smart);
    temperatures(&mut section, smart);
    let (spare, least, used) =
        (smart.available_spare, smart.available_spare_threshold, smart.percentage_used);
    section.fact(
        "spare",
        format!("{spare} %, critical below {least} %"),
        [
            ("available_spare_percent", json!(spare)),
            ("available_spare_threshold_percent", json!(least)),
        ],
    );
    section.fact("life used", format!("{used} %"), [("life_used_percent", json!(used))]);
    let count = |value: zerocopy::little_endian::U128| bytes(value.get());
    for (label, name, units, commands_name, commands) in [
        ("read", "read_bytes", smart.data_units_read, "read_commands", smart.host_read_commands),
        (
            "written",
            "written_bytes",
            smart.data_units_written,
            "write_commands",
            smart.host_write_commands,
        ),
    ] {
        let (units, commands) = (count(units), count(commands));
        let total = units.saturating_mul(DATA_UNIT);
        section.fact(
            label,
            format!("{} by {}", decimal(total), counted(commands, "command")),
            [(name, json!(total)), (commands_name, json!(commands))],
        );
    }
    for (label, name, unit, value) in [
        ("busy", "busy_minutes", "minute", smart.controller_busy_time),
        ("powered on", "power_on_hours", "hour", smart.power_on_hours),
        ("power cycles", "power_cycles", "", smart.power_cycles),
        ("unsafe shutdowns", "unsafe_shutdowns", "", smart.unsafe_shutdowns),
        ("media errors", "media_errors", "", smart.media_errors),
        ("errors logged", "error_log_entries", "", smart.error_log_entries),
    ] {
        let text = match unit {
            "" => count(value).to_string(),
            unit => counted(count(value), unit),
        };
        section.fact(label, text, [(name, json!(count(value)))]);
    }
    section
}

fn warnings(section: &mut Section, smart: &SmartHealth) {
    let warning = smart.critical_warning;
    let all = [
        ("spare capacity is short", "spare", warning.spare()),
        ("a temperature is past its threshold", "temperature", warning.temperature()),
        ("reliability is degraded", "reliability", warning.reliability()),
        ("media are read only", "read_only", warning.read_only()),
        ("the backup of volatile memory failed", "backup_failed", warning.backup_failed()),
        ("persistent memory is unreliable", "persistent_memory", warning.pmr_unreliable()),
    ];
    let set: Vec<_> = all.iter().filter(|item| item.2).map(|item| item.0).collect();
    let text = if set.is_empty() { "none".to_owned() } else { set.join("; ") };
    let values = all.iter().map(|item| (item.1.to_owned(), json!(item.2)));
    section.fact(
        "critical warnings",
        text,
        [("supported", json!(true)), ("critical_warnings", Value::Object(values.collect()))],
    );
}

fn temperatures(section: &mut Section, smart: &SmartHealth) {
    let composite = smart.composite_temperature.get();
    let sensors: Vec<u16> = smart.temperature_sensors.to_vec();
    let mut text = match composite {
        0 => "not reported".to_owned(),
        kelvins => celsius(kelvins),
    };
    for (index, kelvins) in sensors.iter().enumerate().filter(|sensor| *sensor.1 != 0) {
        text.push_str(&format!(", sensor {} {}", index + 1, celsius(*kelvins)));
    }
    let (warm, hot) = (smart.warning_temperature_time, smart.critical_temperature_time);
    if composite != 0 {
        text.push_str(&format!(
            "; {warm} minutes above the warning, {hot} above the critical limit"
        ));
    }
    section.fact(
        "temperature",
        text,
        [
            ("temperature_kelvin", some(composite.into())),
            ("sensors_kelvin", json!(sensors)),
            ("warning_temperature_minutes", json!(warm)),
            ("critical_temperature_minutes", json!(hot)),
        ],
    );
}

/// Bytes in powers of 1000, as data units are meant: `1.54 GB`.
fn decimal(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 2 };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_told_in_the_units_it_is_counted_in() {
        for (bytes, text) in
            [(0, "0 B"), (512_000, "512.00 kB"), (1_536_000_000, "1.54 GB"), (u64::MAX, "18.45 EB")]
        {
            assert_eq!(decimal(bytes), text);
        }
    }

    #[test]
    fn power_is_exact_in_its_units() {
        assert_eq!(scaled_watts(123, 1), Some(0.0123));
        assert_eq!(scaled_watts(2500, 2), Some(25.0));
        assert_eq!(scaled_watts(1, 0), None);
    }
}
