//! Figures for tests.

use super::figures::Figures;
use super::history::History;
use super::latency::Histogram;
use super::sample::{
    ControllerCounts, ControllerPlace, Counts, Inventory, NamespacePlace, Part, QueueCounts,
    Sample, Times, WorkerCounts, WorkerPlace,
};

/// Readings of two workers and two controllers, of which one does I/O.
pub(super) fn history() -> History {
    let mut history = History::default();
    history.inventory(inventory());
    for second in 0..30 {
        history.sample(sample(second));
    }
    history
}

/// What they show.
pub(super) fn figures() -> Figures {
    history().figures().expect("something was read")
}

fn inventory() -> Inventory {
    let worker = |name: &str, core| WorkerPlace {
        name: name.into(),
        core: Some(core),
        tenant: "default".into(),
        running: true,
        pid: 4711,
        controllers: 2,
    };
    let controller = |name: &str, client| ControllerPlace {
        name: name.into(),
        subsystem: "s0".into(),
        served: true,
        client,
        queues: 64,
    };
    Inventory {
        ready: true,
        missing: Vec::new(),
        workers: vec![worker("w0", 2), worker("w1", 3)],
        controllers: vec![controller("vm0", Some(12_345)), controller("vm1", None)],
        namespaces: vec![NamespacePlace {
            name: "s0/1".into(),
            volume: "mem0".into(),
            served: true,
        }],
    }
}

fn sample(second: u64) -> Sample {
    let counts = Counts {
        reads: second * 12_300,
        writes: second * 4_100,
        others: second,
        read_bytes: second * 12_300 * 4096,
        written_bytes: second * 4_100 * 4096,
        errors: 0,
        throttled: second * 250,
        throttled_ns: second * 250 * 1_500_000,
    };
    let latencies = Histogram {
        sum_ns: second * 83_000 * 16,
        buckets: [(76_000, second * 14), (412_000, second * 2)].into(),
    };
    let busy = ControllerCounts {
        name: "vm0".into(),
        counts,
        parts: vec![Part { namespace: "s0/1".into(), counts }],
        latencies: latencies.clone(),
        on_workers: vec![("w0".into(), latencies.clone())],
        queues: vec![QueueCounts {
            worker: "w0".into(),
            id: 1,
            commands: second * 16_400,
            completions: second * 16_400,
        }],
    };
    let idle = ControllerCounts { name: "vm1".into(), ..ControllerCounts::default() };
    let times = |busy, asleep| Times {
        busy_ns: second * busy,
        spinning_ns: second * (1_000_000_000 - busy - asleep),
        sleeping_ns: second * asleep,
        polls: second * 310_000,
    };
    Sample {
        time: 1_700_000_000.0 + second as f64,
        controllers: vec![busy, idle],
        workers: vec![
            WorkerCounts {
                name: "w0".into(),
                counts,
                latencies,
                times: Some(times(430_000_000, 0)),
            },
            WorkerCounts {
                name: "w1".into(),
                times: Some(times(1_000_000, 990_000_000)),
                ..WorkerCounts::default()
            },
        ],
        failures: Vec::new(),
    }
}
