use super::*;
use crate::top::latency::Histogram;
use crate::top::sample::{ControllerPlace, NamespacePlace, Part, QueueCounts, WorkerPlace};

fn counts(reads: u64) -> Counts {
    // One in ten has to wait, 3 us each.
    let (throttled, throttled_ns) = (reads / 10, reads / 10 * 3_000);
    Counts { reads, read_bytes: reads * 4096, throttled, throttled_ns, ..Counts::default() }
}

/// One controller on one worker that has done so many reads at that time, and was busy for a quarter of it.
fn sample(time: f64, reads: u64) -> Sample {
    let nanoseconds = |part: f64| (time * part * 1e9) as u64;
    let controller = ControllerCounts {
        name: "vm0".into(),
        counts: counts(reads),
        parts: vec![Part { namespace: "s0/1".into(), counts: counts(reads) }],
        latencies: Histogram { sum_ns: reads * 10, buckets: [(10, reads)].into() },
        on_workers: vec![(
            "w0".into(),
            Histogram { sum_ns: reads * 20, buckets: [(20, reads)].into() },
        )],
        queues: vec![
            QueueCounts { worker: "w0".into(), id: 1, commands: reads / 4, completions: reads / 4 },
            QueueCounts { worker: "w0".into(), id: 2, commands: reads / 4 * 3, completions: 0 },
        ],
    };
    let times = Times {
        busy_ns: nanoseconds(0.25),
        spinning_ns: nanoseconds(0.05),
        sleeping_ns: nanoseconds(0.7),
        polls: reads * 2,
    };
    let worker = WorkerCounts {
        name: "w0".into(),
        counts: counts(reads),
        latencies: Histogram { sum_ns: reads * 30, buckets: [(30, reads)].into() },
        times: Some(times),
    };
    Sample { time, controllers: vec![controller], workers: vec![worker], failures: Vec::new() }
}

fn inventory() -> Inventory {
    Inventory {
        ready: true,
        missing: Vec::new(),
        workers: vec![WorkerPlace { name: "w0".into(), core: Some(3), ..WorkerPlace::default() }],
        controllers: vec![ControllerPlace {
            name: "vm0".into(),
            client: Some(77),
            queues: 64,
            ..ControllerPlace::default()
        }],
        namespaces: vec![
            NamespacePlace { name: "s0/1".into(), volume: "mem0".into(), served: true },
            NamespacePlace { name: "s0/2".into(), volume: "disk".into(), served: false },
        ],
    }
}

#[test]
fn one_reading_has_no_rates_and_two_have() {
    let mut history = History::default();
    assert!(history.figures().is_none());
    history.sample(sample(100.0, 1_000));
    let figures = history.figures().unwrap();
    assert_eq!((figures.seconds, figures.total), (None, None));
    assert_eq!(figures.controllers[0].rates, None);
    assert_eq!((figures.workers[0].doing, figures.controllers[0].state), (Doing::Unknown, "-"));

    history.inventory(inventory());
    history.sample(sample(102.0, 1_400));
    let figures = history.figures().unwrap();
    let total = figures.total.unwrap();
    assert_eq!((total.reads, total.read_bytes, total.writes), (200.0, 200.0 * 4096.0, 0.0));
    let controller = &figures.controllers[0];
    assert_eq!(
        (controller.state, controller.client, controller.queues_used),
        ("connected", Some(77), 2)
    );
    assert_eq!(controller.latency.map(|latency| latency.samples), Some(400));
    let depth = controller.depth.unwrap();
    assert!((depth - 200.0 * 10.0 / 1e9).abs() < 1e-12, "{depth}");
    let worker = &figures.workers[0];
    assert_eq!((worker.core, worker.doing, worker.polls), (Some(3), Doing::Asleep, Some(400.0)));
    assert!((worker.busy_percent.unwrap() - 25.0).abs() < 0.01);
    assert_eq!(worker.latency.map(|latency| (latency.p99_ns, latency.samples)), Some((30.0, 400)));
    let rates = controller.rates.unwrap();
    assert_eq!((rates.throttled, rates.waited_ns()), (20.0, Some(3_000.0)));
    assert_eq!(total.throttled, 20.0);
    for queue in &figures.queues {
        assert_eq!(queue.shared_latency.map(|latency| latency.p50_ns), Some(20.0));
    }
    let queues: Vec<_> =
        figures.queues.iter().map(|q| (q.id, q.commands, q.share_percent)).collect();
    assert_eq!(queues, [(1, Some(50.0), Some(25.0)), (2, Some(150.0), Some(75.0))]);
    let namespaces: Vec<_> = figures
        .namespaces
        .iter()
        .map(|n| (n.name.as_str(), n.state, n.rates.map(|r| r.reads)))
        .collect();
    assert_eq!(namespaces, [("s0/1", "served", Some(200.0)), ("s0/2", "failed", Some(0.0))]);
}

#[test]
fn counters_that_begin_anew_count_from_zero() {
    let mut history = History::default();
    history.sample(sample(100.0, 1_000));
    history.sample(sample(101.0, 30));
    let figures = history.figures().unwrap();
    assert_eq!(figures.total.unwrap().reads, 30.0);
    let mut restarted = sample(102.0, 60);
    restarted.workers[0].times = Some(Times::default());
    history.sample(restarted);
    assert_eq!(history.figures().unwrap().workers[0].busy_percent, None, "it is another worker");
}

#[test]
fn a_worker_that_tells_nothing_is_away() {
    let mut history = History::default();
    history.inventory(inventory());
    history.sample(sample(100.0, 0));
    let mut silent = sample(101.0, 0);
    silent.workers[0].times = None;
    history.sample(silent);
    let worker = &history.figures().unwrap().workers[0];
    assert_eq!((worker.doing, worker.busy_percent, worker.polls), (Doing::Away, None, None));
}

#[test]
fn readings_too_close_together_or_of_another_time_are_not_compared() {
    let mut history = History::default();
    history.sample(sample(100.0, 0));
    history.sample(sample(101.0, 100));
    history.sample(sample(101.01, 101));
    assert_eq!(history.figures().unwrap().total.unwrap().reads, 100.0);
    history.sample(sample(5.0, 200));
    assert_eq!(history.figures().unwrap().total, None, "a clock that was set back");
    history.sample(sample(6.0, 210));
    assert_eq!(history.figures().unwrap().total.unwrap().reads, 10.0);
    history.interrupt();
    assert!(history.figures().is_none());
    history.sample(sample(7.0, 220));
    assert_eq!(history.figures().unwrap().total, None);
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut history = History::default();
    history.sample(sample(100.0, 0));
    history.sample(sample(101.0, 4));
    assert_eq!((history.controllers.len(), history.queues.len()), (1, 2));
    history.sample(Sample { time: 102.0, ..Sample::default() });
    assert!(history.controllers.is_empty() && history.queues.is_empty());
    assert!(history.places.is_empty());
    assert!(history.workers.is_empty() && history.namespaces.is_empty());
}
