//! What stands in the views: the columns of each, and the value of each column.

use super::figures::{Controller, Doing, Namespace, Queue, Rates, Worker};
use super::latency::Latency;
use super::number::{UNKNOWN, bytes, count, depth, nanos, percent};
use super::table::{Cell, Column, Key, Row, Tone};
use super::trend::Trend;

/// A column of a view, and what stands in it for each thing that the view shows.
pub(super) struct Field<T> {
    column: Column,
    cell: fn(&T) -> Cell,
}

const fn left<T>(title: &'static str, width: u16, rank: u8, cell: fn(&T) -> Cell) -> Field<T> {
    Field { column: Column { title, width, right: false, rank }, cell }
}

const fn right<T>(title: &'static str, width: u16, rank: u8, cell: fn(&T) -> Cell) -> Field<T> {
    Field { column: Column { title, width, right: true, rank }, cell }
}

// Columns of several views. Their rank differs.

const fn reads<T: Shown>(rank: u8) -> Field<T> {
    right("RD IOPS", 7, rank, |of| figure(rate(of, |rates| rates.reads), count))
}

const fn writes<T: Shown>(rank: u8) -> Field<T> {
    right("WR IOPS", 7, rank, |of| figure(rate(of, |rates| rates.writes), count))
}

const fn others<T: Shown>(rank: u8) -> Field<T> {
    right("OTHER", 6, rank, |of| figure(rate(of, |rates| rates.others), count))
}

const fn read_bytes<T: Shown>(rank: u8) -> Field<T> {
    right("RD B/s", 6, rank, |of| figure(rate(of, |rates| rates.read_bytes), bytes))
}

const fn written_bytes<T: Shown>(rank: u8) -> Field<T> {
    right("WR B/s", 6, rank, |of| figure(rate(of, |rates| rates.written_bytes), bytes))
}

const fn throttled<T: Shown>(rank: u8) -> Field<T> {
    right("THR/s", 6, rank, |of| figure(rate(of, |rates| rates.throttled), count))
}

const fn waited<T: Shown>(rank: u8) -> Field<T> {
    right("WAIT", 6, rank, |of| figure(of.rates().and_then(|rates| rates.waited_ns()), nanos))
}

const fn mean<T: Shown>(rank: u8) -> Field<T> {
    right("MEAN", 6, rank, |of| figure(of.latency().map(|latency| latency.mean_ns), nanos))
}

const fn p50<T: Shown>(rank: u8) -> Field<T> {
    right("P50", 6, rank, |of| figure(of.latency().map(|latency| latency.p50_ns), nanos))
}

const fn p99<T: Shown>(rank: u8) -> Field<T> {
    right("P99", 6, rank, |of| figure(of.latency().map(|latency| latency.p99_ns), nanos))
}

/// Of workers.
pub(super) const WORKERS: &[Field<Worker>] = &[
    left("WORKER", 6, 0, |worker| named(&worker.name)),
    right("CORE", 4, 1, core),
    left("STATE", 7, 1, |worker| word(worker.doing.word(), tone_of(worker.doing))),
    right("BUSY", 5, 1, |worker| figure(worker.busy_percent, percent)),
    right("POLL", 5, 2, |worker| figure(worker.polling_percent, percent)),
    right("SLEEP", 5, 3, |worker| figure(worker.asleep_percent, percent)),
    right("POLLS/s", 7, 5, |worker| figure(worker.polls, count)),
    reads(3),
    writes(3),
    read_bytes(6),
    written_bytes(6),
    mean(8),
    p50(7),
    p99(4),
    throttled(9),
    waited(11),
    right("CTRLS", 5, 10, |worker| total(worker.controllers as u64)),
    right("ERRORS", 6, 10, |worker| errors(worker.errors, worker.rates)),
    right("PID", 7, 12, |worker| process(Some(worker.pid))),
    left("TENANT", 10, 13, |worker| named(&worker.tenant)),
];

/// Of controllers.
pub(super) const CONTROLLERS: &[Field<Controller>] = &[
    left("CONTROLLER", 6, 0, |controller| named(&controller.name)),
    left("STATE", 9, 1, connection),
    reads(1),
    writes(1),
    read_bytes(3),
    written_bytes(3),
    mean(4),
    p50(5),
    p99(2),
    right("ERR", 5, 6, |controller| errors(controller.errors, controller.rates)),
    throttled(7),
    waited(9),
    right("Q", 5, 8, queues),
    right("DEPTH", 5, 10, |controller| figure(controller.depth, depth)),
    others(11),
    right("CLIENT", 7, 12, |controller| process(controller.client)),
    left("SUBSYSTEM", 12, 13, |controller| named(&controller.subsystem)),
];

/// Of queues; latencies are of all queues of the controller on that worker together.
pub(super) const QUEUES: &[Field<Queue>] = &[
    left("CONTROLLER", 6, 0, |queue| named(&queue.controller)),
    right("QUEUE", 5, 0, identifier),
    left("WORKER", 10, 1, |queue| named(&queue.worker)),
    right("CMDS/s", 7, 1, |queue| figure(queue.commands, count)),
    right("DONE/s", 7, 2, |queue| figure(queue.completions, count)),
    right("SHARE", 5, 3, |queue| figure(queue.share_percent, percent)),
    right("COMMANDS", 8, 4, |queue| total(queue.commands_total)),
    mean(7),
    p50(6),
    p99(5),
];

/// Of namespaces.
pub(super) const NAMESPACES: &[Field<Namespace>] = &[
    left("NAMESPACE", 6, 0, |namespace| named(&namespace.name)),
    left("VOLUME", 12, 3, |namespace| named(&namespace.volume)),
    left("STATE", 6, 1, service),
    reads(1),
    writes(1),
    read_bytes(2),
    written_bytes(2),
    others(5),
    throttled(6),
    waited(7),
    right("ERRORS", 6, 4, |namespace| errors(namespace.errors, namespace.rates)),
];

/// What several views show in the same way.
pub(super) trait Shown {
    /// What fills a bar of the last minute.
    const FULL: Option<f64> = None;

    /// Where none are counted, `None`.
    fn rates(&self) -> Option<Rates> {
        None
    }

    /// Where none is measured, `None`.
    fn latency(&self) -> Option<Latency> {
        None
    }

    /// The last minute.
    fn trend(&self) -> &Trend;
}

impl Shown for Worker {
    const FULL: Option<f64> = Some(100.0);

    fn rates(&self) -> Option<Rates> {
        self.rates
    }

    fn latency(&self) -> Option<Latency> {
        self.latency
    }

    fn trend(&self) -> &Trend {
        &self.trend
    }
}

impl Shown for Controller {
    fn rates(&self) -> Option<Rates> {
        self.rates
    }

    fn latency(&self) -> Option<Latency> {
        self.latency
    }

    fn trend(&self) -> &Trend {
        &self.trend
    }
}

impl Shown for Queue {
    fn latency(&self) -> Option<Latency> {
        self.shared_latency
    }

    fn trend(&self) -> &Trend {
        &self.trend
    }
}

impl Shown for Namespace {
    fn rates(&self) -> Option<Rates> {
        self.rates
    }

    fn trend(&self) -> &Trend {
        &self.trend
    }
}

/// What stands above them.
pub(super) fn heads<T>(fields: &[Field<T>]) -> Vec<Column> {
    fields.iter().map(|field| field.column).collect()
}

/// A row for each.
pub(super) fn rows<T: Shown>(fields: &[Field<T>], all: &[T]) -> Vec<Row> {
    let row = |one: &T| {
        let cells = fields.iter().map(|field| (field.cell)(one)).collect();
        Row { cells, trend: one.trend().clone(), full: T::FULL }
    };
    all.iter().map(row).collect()
}

fn word(text: &str, tone: Tone) -> Cell {
    Cell { text: text.to_owned(), key: Key::Text(text.to_owned()), tone }
}

fn named(text: &str) -> Cell {
    word(text, Tone::Plain)
}

/// A figure; zero and what is not known step back.
pub(super) fn figure(value: Option<f64>, show: fn(Option<f64>) -> String) -> Cell {
    let tone = if value.is_some_and(|value| value > 0.0) { Tone::Plain } else { Tone::Dim };
    Cell { text: show(value), key: Key::Number(value), tone }
}

fn total(value: u64) -> Cell {
    figure(Some(value as f64), count)
}

/// Errors so far: bad where there are new ones.
fn errors(value: u64, rates: Option<Rates>) -> Cell {
    let mut cell = total(value);
    if rates.is_some_and(|rates| rates.errors > 0.0) {
        cell.tone = Tone::Bad;
    }
    cell
}

fn rate(of: &impl Shown, value: fn(&Rates) -> f64) -> Option<f64> {
    of.rates().as_ref().map(value)
}

fn process(pid: Option<i32>) -> Cell {
    let pid = pid.filter(|pid| *pid != 0);
    let text = pid.map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string());
    Cell { text, key: Key::Number(pid.map(f64::from)), tone: Tone::Dim }
}

fn tone_of(doing: Doing) -> Tone {
    match doing {
        Doing::Away => Tone::Bad,
        Doing::Busy => Tone::Good,
        Doing::Unknown | Doing::Asleep | Doing::Polling => Tone::Plain,
    }
}

fn core(worker: &Worker) -> Cell {
    let text = worker.core.map_or_else(|| "any".to_owned(), |core| core.to_string());
    Cell { text, key: Key::Number(worker.core.map(f64::from)), tone: Tone::Plain }
}

fn connection(controller: &Controller) -> Cell {
    let tone = match controller.state {
        "connected" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Dim,
    };
    word(controller.state, tone)
}

/// Queues that have had commands, of those that it may have.
fn queues(controller: &Controller) -> Cell {
    let used = controller.queues_used;
    let text = match controller.queues {
        0 => used.to_string(),
        all => format!("{used}/{all}"),
    };
    Cell { text, key: Key::Number(Some(used as f64)), tone: Tone::Plain }
}

fn identifier(queue: &Queue) -> Cell {
    let key = Key::Number(Some(f64::from(queue.id)));
    Cell { text: queue.id.to_string(), key, tone: Tone::Plain }
}

fn service(namespace: &Namespace) -> Cell {
    word(namespace.state, if namespace.state == "failed" { Tone::Bad } else { Tone::Dim })
}
