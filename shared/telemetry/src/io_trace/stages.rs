//! The stages of a command, as a worker's record tells of them.

use ipc::layout::telemetry::TraceRecord;

/// Where a command's spans hang; the low halves of the span ids.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    Command = 1,
    Fetch,
    Translate,
    Channel,
    Complete,
    Interrupt,
    Device,
    Wait,
    Limit,
    Pause,
}

impl Stage {
    pub(super) fn span_id(self, trace: u64) -> u64 {
        // One to one for a stage, so that two traces never share an id.
        mix(trace.wrapping_add((self as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }
}

/// Mixes all bits, one to one but for 0, which is no span's id.
pub(super) fn mix(mut id: u64) -> u64 {
    id = (id ^ id >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    id = (id ^ id >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    (id ^ id >> 31).max(1)
}

/// When a command had ended: nanoseconds of the monotonic clock.
pub(super) fn end(record: &TraceRecord) -> u64 {
    let TraceRecord { fetched, started, translated, submitted, done, posted, signalled, .. } =
        *record;
    let last = [fetched, started, translated, submitted, done, posted, signalled];
    last.into_iter().max().unwrap_or(fetched)
}

/// What a command waited for: `limit`, `channel`, `pause`, with commas.
pub(super) fn waited_for(record: &TraceRecord) -> String {
    let stages = stages(record);
    let by_pause =
        |timed: &Timed| matches!((timed.stage, timed.within), (Stage::Pause, Stage::Wait));
    let pause_alone = stages.iter().any(by_pause);
    let waited = stages.iter().filter_map(|timed| match timed.stage {
        Stage::Limit => Some("limit"),
        Stage::Wait if !pause_alone => Some("channel"),
        Stage::Pause => Some("pause"),
        _ => None,
    });
    waited.collect::<Vec<&str>>().join(",")
}

/// A stage with its times.
pub(super) struct Timed {
    pub(super) stage: Stage,
    pub(super) name: &'static str,
    pub(super) from: u64,
    pub(super) to: u64,
    /// The stage that it is a part of.
    pub(super) within: Stage,
}

/// The stages of a command that were timed.
pub(super) fn stages(record: &TraceRecord) -> Vec<Timed> {
    let Waits { fetched_to, held, wait, pause } = Waits::of(record);
    let all = [
        (Stage::Fetch, "fetch", (record.fetched, fetched_to)),
        (Stage::Limit, "limit", held),
        (Stage::Translate, "translate", (record.started, record.translated)),
        (Stage::Wait, "wait", wait),
        (Stage::Channel, "channel", (record.submitted, record.done)),
        (Stage::Complete, "complete", (record.done, record.posted)),
        (Stage::Interrupt, "interrupt", (record.posted, record.signalled)),
    ];
    let timed = all.into_iter().filter(|(_, _, (from, to))| *from != 0 && to >= from);
    let one = |(stage, name, (from, to))| Timed { stage, name, from, to, within: Stage::Command };
    let mut timed: Vec<Timed> = timed.map(one).collect();
    if let Some((from, to)) = pause {
        let has_it = |other: &&Timed| {
            matches!(other.stage, Stage::Limit | Stage::Wait | Stage::Channel)
                && (other.from..=other.to).contains(&from)
        };
        let within = timed.iter().find(has_it).map_or(Stage::Command, |other| other.stage);
        timed.push(Timed { stage: Stage::Pause, name: "pause", from, to, within });
    }
    timed
}

/// When a command waited: begin and end, in nanoseconds of the monotonic clock; a begin of 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The end of the wait for its turn in its batch, which began with the fetch.
    pub fetched_to: u64,
    /// For a limit.
    pub held: (u64, u64),
    /// For a channel that had no room, or was not there.
    pub wait: (u64, u64),
    /// For the end of a pause, which may be a part of any of the others, and of what a command of several requests does.
    pub pause: Option<(u64, u64)>,
}

impl Waits {
    /// Those of a worker's record.
    pub fn of(record: &TraceRecord) -> Self {
        let TraceRecord { held, started, translated, submitted, paused, resumed, .. } = *record;
        let turn = if held == 0 { started } else { held };
        let pause = (paused != 0 && resumed >= paused).then_some((paused, resumed));
        // One that was paused before its limit was looked at.
        let fetched_to = pause.map_or(turn, |(from, _)| turn.min(from.max(record.fetched)));
        let waited = translated != 0 && submitted > translated;
        Self {
            fetched_to,
            held: (held, started),
            wait: if waited { (translated, submitted) } else { (0, 0) },
            pause,
        }
    }
}
