//! Features: what their values mean.

use nvme_spec::feature::event::AsyncEventConfiguration;
use nvme_spec::feature::{
    Arbitration, ErrorRecovery, FeatureId, HostBehaviorSupport, InterruptCoalescing,
    InterruptVectorConfiguration, NamespaceWriteProtection, NumberOfQueues, PowerManagement,
    TemperatureThreshold, Timestamp, TimestampOrigin, VolatileWriteCache, WriteAtomicity,
    WriteProtectionState,
};
use serde_json::{Map, Value, json};
use zerocopy::FromBytes;

use super::fact::{Answer, Place, Section};
use super::snapshot::{FeatureSnapshot, FeatureValue, Snapshot, is_asked};
use super::time::utc;

/// Unit of TLER in milliseconds.
const TLER_MS: u64 = 100;
/// Unit of the aggregation time in microseconds.
const AGGREGATION_US: u64 = 100;
/// Kelvins of 0 degrees Celsius.
pub(super) const ZERO_CELSIUS: i64 = 273;

/// What a value means: words, and the same by name.
struct Meaning {
    text: String,
    values: Vec<(&'static str, Value)>,
}

impl Meaning {
    fn new<const N: usize>(text: impl Into<String>, values: [(&'static str, Value); N]) -> Self {
        Self { text: text.into(), values: values.into() }
    }
}

/// The features of the controller.
pub(super) fn features(snapshot: &Snapshot) -> Section {
    let title = "Features (current values; those that a reset clears were cleared by connecting)";
    let mut section = Section::new(title, Place::Object("features"));
    for feature in &snapshot.features {
        describe(&mut section, snapshot, feature);
    }
    let others: Vec<_> = match snapshot.logs.features.given() {
        Some(page) => (0..=u8::MAX)
            .map(FeatureId)
            .filter(|fid| page.fids.get(usize::from(fid.0)).is_some_and(|f| f.fsupp()))
            .filter(|fid| !is_asked(*fid))
            .collect(),
        None => Vec::new(),
    };
    if !others.is_empty() {
        let names: Vec<_> = others.iter().map(|fid| title_of(*fid)).collect();
        let ids: Vec<_> = others.iter().map(|fid| fid.0).collect();
        section.fact("others, not read", names.join(", "), [("others", json!(ids))]);
    }
    section
}

/// Adds one feature.
pub(super) fn describe(section: &mut Section, snapshot: &Snapshot, feature: &FeatureSnapshot) {
    let mut object = Map::new();
    object.insert("id".to_owned(), json!(feature.fid.0));
    let text = match &feature.current {
        Answer::Given(value) => {
            let meaning = meaning(snapshot, feature, value);
            object.insert("supported".to_owned(), json!(true));
            object.insert("raw".to_owned(), json!(value.dw0));
            for (name, value) in meaning.values {
                object.insert(name.to_owned(), value);
            }
            let mut text = meaning.text;
            if let Some(default) = feature.default.filter(|default| *default != value.dw0) {
                let usual = FeatureValue { dw0: default, data: Vec::new() };
                let usual = self::meaning(snapshot, feature, &usual).text;
                text.push_str(&format!(" (default: {usual})"));
            }
            object.insert("default_raw".to_owned(), json!(feature.default));
            if let Some(can) = feature.capabilities {
                if !can.changeable() {
                    text.push_str("; cannot be changed");
                }
                if can.saveable() {
                    text.push_str("; can be saved");
                }
                object.insert("changeable".to_owned(), json!(can.changeable()));
                object.insert("saveable".to_owned(), json!(can.saveable()));
            }
            text
        }
        other => {
            let why = other.why_not().unwrap_or_default();
            object.insert("supported".to_owned(), json!(false));
            object.insert("reason".to_owned(), json!(why));
            why
        }
    };
    let name = snake(&title_of(feature.fid));
    section.fact(label(feature.fid), text, [(name.as_str(), Value::Object(object))]);
}

/// Whether Interrupt Vector Configuration says that a vector is not coalesced.
pub(super) fn is_uncoalesced(dw0: u32) -> bool {
    InterruptVectorConfiguration::from_bits(dw0).cd()
}

fn title_of(fid: FeatureId) -> String {
    fid.name().map_or_else(|| format!("feature {:02x}h", fid.0), str::to_owned)
}

/// The name, short enough for its column.
fn label(fid: FeatureId) -> &'static str {
    match fid {
        FeatureId::ARBITRATION => "arbitration",
        FeatureId::POWER_MANAGEMENT => "power state",
        FeatureId::TEMPERATURE_THRESHOLD => "temperature threshold",
        FeatureId::ERROR_RECOVERY => "error recovery",
        FeatureId::VOLATILE_WRITE_CACHE => "volatile write cache",
        FeatureId::NUMBER_OF_QUEUES => "number of queues",
        FeatureId::INTERRUPT_COALESCING => "interrupt coalescing",
        FeatureId::INTERRUPT_VECTOR_CONFIGURATION => "interrupt vectors",
        FeatureId::WRITE_ATOMICITY_NORMAL => "write atomicity",
        FeatureId::ASYNC_EVENT_CONFIGURATION => "events wanted",
        FeatureId::AUTONOMOUS_POWER_STATE_TRANSITION => "autonomous power",
        FeatureId::HOST_MEMORY_BUFFER => "host memory buffer",
        FeatureId::TIMESTAMP => "timestamp",
        FeatureId::KEEP_ALIVE_TIMER => "keep alive timer",
        FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT => "thermal management",
        FeatureId::NON_OPERATIONAL_POWER_STATE => "non-operational work",
        FeatureId::HOST_BEHAVIOR_SUPPORT => "host behavior",
        FeatureId::SANITIZE_CONFIG => "sanitize",
        FeatureId::COMMAND_SET_PROFILE => "command set profile",
        FeatureId::SOFTWARE_PROGRESS_MARKER => "software progress",
        FeatureId::NAMESPACE_WRITE_PROTECTION => "write protection",
        _ => "feature",
    }
}

fn meaning(snapshot: &Snapshot, feature: &FeatureSnapshot, value: &FeatureValue) -> Meaning {
    let dw0 = value.dw0;
    match feature.fid {
        FeatureId::ARBITRATION => arbitration(dw0),
        FeatureId::POWER_MANAGEMENT => {
            let power = PowerManagement::from_bits(dw0);
            Meaning::new(
                format!("state {}, workload hint {}", power.ps(), power.wh()),
                [("power_state", json!(power.ps())), ("workload_hint", json!(power.wh()))],
            )
        }
        FeatureId::TEMPERATURE_THRESHOLD => temperature(dw0),
        FeatureId::ERROR_RECOVERY => error_recovery(dw0),
        FeatureId::VOLATILE_WRITE_CACHE => {
            let on = VolatileWriteCache::from_bits(dw0).wce();
            Meaning::new(on_off(on), [("enabled", json!(on))])
        }
        FeatureId::NUMBER_OF_QUEUES => {
            let queues = NumberOfQueues::from_bits(dw0);
            let (sq, cq) = (u32::from(queues.nsq_z()) + 1, u32::from(queues.ncq_z()) + 1);
            Meaning::new(
                format!("{sq} submission and {cq} completion queues granted"),
                [("submission_queues", json!(sq)), ("completion_queues", json!(cq))],
            )
        }
        FeatureId::INTERRUPT_COALESCING => coalescing(dw0),
        FeatureId::INTERRUPT_VECTOR_CONFIGURATION => vectors(snapshot, feature),
        FeatureId::WRITE_ATOMICITY_NORMAL => {
            let off = WriteAtomicity::from_bits(dw0).dn();
            let text = match off {
                true => "only as if power failed",
                false => "as the limits say",
            };
            Meaning::new(text, [("normal_disabled", json!(off))])
        }
        FeatureId::ASYNC_EVENT_CONFIGURATION => events(dw0),
        FeatureId::TIMESTAMP => timestamp(value),
        FeatureId::KEEP_ALIVE_TIMER => {
            let text = if dw0 == 0 { "off".to_owned() } else { format!("{dw0} ms") };
            Meaning::new(text, [("timeout_ms", json!(dw0))])
        }
        FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT => thermal(dw0),
        FeatureId::HOST_BEHAVIOR_SUPPORT => host_behavior(value),
        FeatureId::COMMAND_SET_PROFILE => {
            Meaning::new(format!("combination {dw0}"), [("combination", json!(dw0))])
        }
        FeatureId::SOFTWARE_PROGRESS_MARKER => {
            let count = dw0 & 0xFF;
            Meaning::new(format!("{count} loads before the system"), [("load_count", json!(count))])
        }
        FeatureId::NAMESPACE_WRITE_PROTECTION => {
            let state = NamespaceWriteProtection::from_bits(dw0).wps();
            let text = match state {
                WriteProtectionState::NONE => "off".to_owned(),
                state => state.to_string(),
            };
            Meaning::new(text, [("state", json!(state.to_string()))])
        }
        FeatureId::AUTONOMOUS_POWER_STATE_TRANSITION
        | FeatureId::HOST_MEMORY_BUFFER
        | FeatureId::NON_OPERATIONAL_POWER_STATE => {
            let on = dw0 & 1 != 0;
            Meaning::new(on_off(on), [("enabled", json!(on))])
        }
        _ => Meaning::new(format!("{dw0:#x}"), []),
    }
}

fn arbitration(dw0: u32) -> Meaning {
    let value = Arbitration::from_bits(dw0);
    let burst = (value.ab() < 7).then(|| 1_u32 << value.ab());
    let text = match burst {
        Some(1) => "one command at a time".to_owned(),
        Some(burst) => format!("bursts of {burst} commands"),
        None => "bursts without limit".to_owned(),
    };
    let [low, medium, high] =
        [value.lpw_z(), value.mpw_z(), value.hpw_z()].map(|weight_z| u16::from(weight_z) + 1);
    Meaning::new(
        format!("{text}; weights low {low}, medium {medium}, high {high}"),
        [
            ("burst_commands", json!(burst)),
            ("low_priority_weight", json!(low)),
            ("medium_priority_weight", json!(medium)),
            ("high_priority_weight", json!(high)),
        ],
    )
}

fn temperature(dw0: u32) -> Meaning {
    let threshold = TemperatureThreshold::from_bits(dw0).tmpth();
    let text = match threshold {
        0 | u16::MAX => "none".to_owned(),
        kelvins => format!("over {}", celsius(kelvins)),
    };
    Meaning::new(text, [("over_kelvin", json!(threshold))])
}

fn error_recovery(dw0: u32) -> Meaning {
    let value = ErrorRecovery::from_bits(dw0);
    let limit = u64::from(value.tler()) * TLER_MS;
    let text = match limit {
        0 => "without a time limit".to_owned(),
        ms => format!("for at most {ms} ms"),
    };
    let dulbe = value.dulbe();
    let error = if dulbe { "an error" } else { "no error" };
    Meaning::new(
        format!("{text}; reading deallocated blocks is {error}"),
        [("time_limit_ms", json!(limit)), ("deallocated_error_enabled", json!(dulbe))],
    )
}

fn coalescing(dw0: u32) -> Meaning {
    let value = InterruptCoalescing::from_bits(dw0);
    let threshold = u16::from(value.thr_z()) + 1;
    let time = u64::from(value.time()) * AGGREGATION_US;
    let text = match (threshold, time) {
        (1, _) | (_, 0) => "off: an interrupt at once".to_owned(),
        _ => format!("{threshold} completions or {time} us, whichever comes first"),
    };
    Meaning::new(text, [("threshold_completions", json!(threshold)), ("time_us", json!(time))])
}

fn vectors(snapshot: &Snapshot, feature: &FeatureSnapshot) -> Meaning {
    let off: Vec<String> = feature.uncoalesced.iter().map(u16::to_string).collect();
    let text = match (off.len(), snapshot.vectors) {
        (0, _) => "all as above".to_owned(),
        (count, vectors) if count == usize::from(vectors) => "none coalesced".to_owned(),
        _ => format!("not coalesced: {}", off.join(", ")),
    };
    Meaning::new(text, [("not_coalesced_vectors", json!(feature.uncoalesced))])
}

fn events(dw0: u32) -> Meaning {
    let value = AsyncEventConfiguration::from_bits(dw0);
    let smart = value.smart();
    let all = [
        ("spare capacity", "spare", smart.spare()),
        ("temperature", "temperature", smart.temperature()),
        ("reliability", "reliability", smart.reliability()),
        ("read-only media", "read_only", smart.read_only()),
        ("memory backup", "backup_failed", smart.backup_failed()),
        ("persistent memory", "persistent_memory", smart.pmr_unreliable()),
        ("namespace changes", "namespace_attribute", value.namespace_attribute()),
        ("firmware activation", "firmware_activation", value.firmware_activation()),
        ("telemetry", "telemetry_log", value.telemetry_log()),
        ("ANA changes", "ana_change", value.ana_change()),
        ("predictable latency", "predictable_latency", value.predictable_latency()),
        ("LBA status", "lba_status", value.lba_status()),
        ("endurance groups", "endurance_group", value.endurance_group()),
        ("subsystem shutdown", "normal_shutdown", value.normal_shutdown()),
    ];
    let names: Vec<_> = all.iter().filter(|event| event.2).map(|event| event.0).collect();
    let text = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Meaning { text, values: all.map(|event| (event.1, json!(event.2))).into() }
}

fn timestamp(value: &FeatureValue) -> Meaning {
    let Ok((timestamp, _)) = Timestamp::read_from_prefix(&value.data) else {
        return Meaning::new("not readable", []);
    };
    let ms = timestamp.milliseconds();
    let set = timestamp.attributes.origin() == TimestampOrigin::SET;
    let text = match set {
        true => format!("{}, as a host set it", utc(ms)),
        false => format!("{:.1} s since the reset; no host set it", ms as f64 / 1000.0),
    };
    Meaning::new(
        text,
        [
            ("timestamp_ms", json!(ms)),
            ("set_by_host", json!(set)),
            ("may_have_stopped", json!(timestamp.attributes.synch())),
        ],
    )
}

fn thermal(dw0: u32) -> Meaning {
    let (heavy, light) = (dw0 as u16, (dw0 >> 16) as u16);
    let text = |kelvins| if kelvins == 0 { "off".to_owned() } else { celsius(kelvins) };
    Meaning::new(
        format!("light from {}, heavy from {}", text(light), text(heavy)),
        [("light_kelvin", json!(light)), ("heavy_kelvin", json!(heavy))],
    )
}

fn host_behavior(value: &FeatureValue) -> Meaning {
    let Ok((behavior, _)) = HostBehaviorSupport::read_from_prefix(&value.data) else {
        return Meaning::new("not readable", []);
    };
    let all = [
        ("retry delays", "command_retry_delays", behavior.acre != 0),
        ("telemetry area 4", "telemetry_area_4", behavior.etdas != 0),
        ("extended LBA formats", "extended_lba_formats", behavior.lbafee != 0),
    ];
    let names: Vec<_> = all.iter().filter(|item| item.2).map(|item| item.0).collect();
    let text = if names.is_empty() { "nothing said".to_owned() } else { names.join(", ") };
    Meaning { text, values: all.map(|item| (item.1, json!(item.2))).into() }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Kelvins as a person reads a temperature.
pub(super) fn celsius(kelvins: u16) -> String {
    format!("{} degrees C", i64::from(kelvins) - ZERO_CELSIUS)
}

/// A name as JSON has it: `I/O Command Set Profile` is `i_o_command_set_profile`.
pub(super) fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            'a'..='z' | '0'..='9' => snake.push(character),
            'A'..='Z' => snake.push(character.to_ascii_lowercase()),
            _ if snake.ends_with('_') || snake.is_empty() => {}
            _ => snake.push('_'),
        }
    }
    snake.trim_end_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_snake_case() {
        assert_eq!(snake("Interrupt Coalescing"), "interrupt_coalescing");
        assert_eq!(snake("SMART / Health Information"), "smart_health_information");
        assert_eq!(snake("I/O Command Set Profile"), "i_o_command_set_profile");
    }

    #[test]
    fn values_are_told_with_their_units() {
        assert_eq!(
            arbitration(0x0302_0107).text,
            "bursts without limit; weights low 2, medium 3, high 4"
        );
        assert_eq!(coalescing(0).text, "off: an interrupt at once");
        assert_eq!(coalescing(0x0507).text, "8 completions or 500 us, whichever comes first");
        assert_eq!(temperature(343).text, "over 70 degrees C");
        assert_eq!(
            error_recovery(0x1_0003).text,
            "for at most 300 ms; reading deallocated blocks is an error"
        );
    }
}
