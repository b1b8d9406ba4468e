use super::*;
use CommandStage::{
    BackendQueue, Completion, Device, Fetch, Limit, Pause, Return, Translate, Wait,
};

fn record(times: [u64; 7]) -> TraceRecord {
    let mut words = [0; TRACE_WORDS];
    words[7..14].copy_from_slice(&times);
    TraceRecord::from_words(&words)
}

/// Stages with begin and length.
fn shown(record: &TraceRecord, part: Option<Part>) -> Vec<(CommandStage, i32, i32)> {
    let nanos = |d: Option<prost_types::Duration>| d.unwrap().nanos;
    let one = |s: CapturedStage| (s.stage(), nanos(s.start), nanos(s.duration));
    stages(record, part).into_iter().map(one).collect()
}

#[test]
fn a_ring_s_stages_lie_between_the_worker_s() {
    let command = record([10, 11, 12, 12, 40, 41, 0]);
    let part = Part { requests: 1, taken: 20, done: 35 };
    let head = [(Fetch, 0, 1), (Translate, 1, 1)];
    let lease = [&head[..], &[(Device, 2, 28), (Completion, 30, 1)]].concat();
    assert_eq!(shown(&command, None), lease);
    let tail = [(BackendQueue, 2, 8), (Device, 10, 15), (Return, 25, 5), (Completion, 30, 1)];
    assert_eq!(shown(&command, Some(part)), [&head[..], &tail].concat());
}

#[test]
fn what_a_command_waited_for_stands_beside_its_other_stages() {
    let limited = TraceRecord { held: 11, ..record([10, 20, 22, 30, 40, 41, 0]) };
    let stages = [
        (Fetch, 0, 1),
        (Limit, 1, 9),
        (Translate, 10, 2),
        (Wait, 12, 8),
        (Device, 20, 10),
        (Completion, 30, 1),
    ];
    assert_eq!(shown(&limited, None), stages);
    let paused = TraceRecord { paused: 23, resumed: 29, ..limited };
    assert_eq!(shown(&paused, None), [&stages[..], &[(Pause, 13, 6)]].concat());
}

/// A command of a worker that two backends' requests belong to, and these.
fn in_parts() -> (TraceRecord, [TraceRecord; 2]) {
    let mut command = record([10, 11, 12, 12, 40, 41, 0]);
    command.trace = 7;
    (command.reason, command.requests, command.by_ring) = (trace_reason::RING, 3, 2);
    let part = |times| TraceRecord { trace: 7, ..record(times) };
    (command, [part([14, 0, 0, 0, 18, 0, 0]), part([20, 0, 0, 0, 35, 0, 0])])
}

#[tokio::test]
async fn all_parts_of_a_command_are_waited_for_in_whatever_order_they_come() {
    let (command, [first, second]) = in_parts();
    for turn in 0..3 {
        let (give, mut answers) = mpsc::channel(1);
        let mut join = Join {
            controller: "controllers/vm0".to_owned(),
            trace_id: String::new(),
            left: 2,
            lost: HashMap::new(),
            held: VecDeque::new(),
            parts: HashMap::new(),
            clock: WallClock::now(),
        };
        let mut order = [None, Some(second), Some(first)];
        order.rotate_left(turn);
        for (come, next) in order.into_iter().enumerate() {
            assert!(answers.try_recv().is_err(), "{come} of three");
            let given = match next {
                None => join.command("w0".into(), command, &give).await,
                Some(part) => join.part(part, &give).await,
            };
            assert!(given.is_ok());
        }
        let given = answers.try_recv().unwrap().unwrap().command.unwrap();
        assert_eq!(given.requests, 3);
        let device = given.stages.iter().find(|stage| stage.stage() == Device).unwrap();
        let nanos = |d: &Option<prost_types::Duration>| d.as_ref().unwrap().nanos;
        assert_eq!((nanos(&device.start), nanos(&device.duration)), (4, 21));
        assert!(join.held.is_empty() && join.parts.is_empty(), "nothing is left");
    }
}
