//! The views: which columns each has, and the rows that figures make of them; sorted, and filtered by a text.

use super::figures::{Controller, Doing, Figures, Namespace, Queue, Rates, Worker};
use super::number::{UNKNOWN, bytes, count, depth, nanos, percent};
use super::trend::Trend;
use std::cmp::Ordering;

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Poll threads.
    Workers,
    /// Controllers.
    Controllers,
    /// I/O queues.
    Queues,
    /// Namespaces.
    Namespaces,
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// Characters.
    pub width: u16,
    /// Names stand at the left, numbers at the right.
    pub right: bool,
    /// Where there is not enough room, those with the greatest go first.
    pub rank: u8,
}

/// What a value is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub enum Key {
    /// By its letters, numbers in it by their value.
    Text(String),
    /// By its size; what is not known is below all.
    Number(Option<f64>),
}

/// How a value looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As any other.
    #[default]
    Plain,
    /// Nothing happens here.
    Dim,
    /// All is well.
    Good,
    /// Something to look at.
    Bad,
}

/// A value.
#[derive(Clone, Debug)]
pub struct Cell {
    /// As it is shown.
    pub text: String,
    /// As it is sorted.
    pub key: Key,
    /// As it looks.
    pub tone: Tone,
}

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// One for each column of the view.
    pub cells: Vec<Cell>,
    /// The last minute.
    pub trend: Trend,
    /// What fills a bar of it.
    pub full: Option<f64>,
}

const fn left(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, right: false, rank }
}

const fn right(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, right: true, rank }
}

const WORKERS: &[Column] = &[
    left("WORKER", 6, 0),
    right("CORE", 4, 1),
    left("STATE", 7, 1),
    right("BUSY", 5, 1),
    right("POLL", 5, 2),
    right("SLEEP", 5, 3),
    right("POLLS/s", 7, 4),
    right("RD IOPS", 7, 3),
    right("WR IOPS", 7, 3),
    right("RD B/s", 6, 5),
    right("WR B/s", 6, 5),
    right("CTRLS", 5, 6),
    right("ERRORS", 6, 7),
    right("PID", 7, 8),
    left("TENANT", 10, 9),
];
const CONTROLLERS: &[Column] = &[
    left("CONTROLLER", 6, 0),
    left("STATE", 9, 1),
    right("RD IOPS", 7, 1),
    right("WR IOPS", 7, 1),
    right("RD B/s", 6, 3),
    right("WR B/s", 6, 3),
    right("MEAN", 6, 4),
    right("P50", 6, 5),
    right("P99", 6, 2),
    right("ERR", 5, 6),
    right("Q", 5, 7),
    right("DEPTH", 5, 8),
    right("OTHER", 6, 9),
    right("CLIENT", 7, 10),
    left("SUBSYSTEM", 12, 11),
];
const QUEUES: &[Column] = &[
    left("CONTROLLER", 6, 0),
    right("QUEUE", 5, 0),
    left("WORKER", 10, 1),
    right("CMDS/s", 7, 1),
    right("DONE/s", 7, 2),
    right("SHARE", 5, 3),
    right("COMMANDS", 8, 4),
];
const NAMESPACES: &[Column] = &[
    left("NAMESPACE", 6, 0),
    left("VOLUME", 12, 3),
    left("STATE", 6, 1),
    right("RD IOPS", 7, 1),
    right("WR IOPS", 7, 1),
    right("RD B/s", 6, 2),
    right("WR B/s", 6, 2),
    right("OTHER", 6, 5),
    right("ERRORS", 6, 4),
];

impl View {
    /// All of them, in the order of their keys.
    pub const ALL: [Self; 4] = [Self::Workers, Self::Controllers, Self::Queues, Self::Namespaces];

    /// Its place among them.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Workers => 0,
            Self::Controllers => 1,
            Self::Queues => 2,
            Self::Namespaces => 3,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Controllers => "controllers",
            Self::Queues => "queues",
            Self::Namespaces => "namespaces",
        }
    }

    /// What the bars of its rows are of.
    #[must_use]
    pub fn trend(self) -> &'static str {
        match self {
            Self::Workers => "BUSY, LAST MINUTE",
            Self::Queues => "CMDS/s, LAST MINUTE",
            Self::Controllers | Self::Namespaces => "IOPS, LAST MINUTE",
        }
    }

    /// Its columns; the first is a name.
    #[must_use]
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Workers => WORKERS,
            Self::Controllers => CONTROLLERS,
            Self::Queues => QUEUES,
            Self::Namespaces => NAMESPACES,
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(self, figures: &Figures) -> usize {
        match self {
            Self::Workers => figures.workers.len(),
            Self::Controllers => figures.controllers.len(),
            Self::Queues => figures.queues.len(),
            Self::Namespaces => figures.namespaces.len(),
        }
    }

    /// Its rows in the order of the figures.
    #[must_use]
    pub fn rows(self, figures: &Figures) -> Vec<Row> {
        match self {
            Self::Workers => figures.workers.iter().map(worker).collect(),
            Self::Controllers => figures.controllers.iter().map(controller).collect(),
            Self::Queues => figures.queues.iter().map(queue).collect(),
            Self::Namespaces => figures.namespaces.iter().map(namespace).collect(),
        }
    }
}

impl Row {
    /// True if some value of it holds this text, whatever the case. `filter` is in small letters.
    #[must_use]
    pub fn matches(&self, filter: &str) -> bool {
        filter.is_empty() || self.cells.iter().any(|cell| cell.text.to_lowercase().contains(filter))
    }
}

/// Sorts by a column; equal ones stay in their order.
pub fn sort(rows: &mut [Row], column: usize, descending: bool) {
    rows.sort_by(|a, b| {
        let keys = a.cells.get(column).zip(b.cells.get(column));
        let order = keys.map_or(Ordering::Equal, |(a, b)| a.key.compare(&b.key));
        if descending { order.reverse() } else { order }
    });
}

impl Key {
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => natural(a, b),
            (Self::Number(a), Self::Number(b)) => {
                let value = |number: &Option<f64>| number.unwrap_or(f64::NEG_INFINITY);
                value(a).total_cmp(&value(b))
            }
            (Self::Text(_), Self::Number(_)) => Ordering::Less,
            (Self::Number(_), Self::Text(_)) => Ordering::Greater,
        }
    }
}

/// `vm2` before `vm10`.
fn natural(a: &str, b: &str) -> Ordering {
    let split = |text: &str| {
        let digits = text.len() - text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (head, tail) = text.split_at(text.len() - digits);
        (head.to_owned(), tail.parse::<u64>().unwrap_or(0))
    };
    split(a).cmp(&split(b)).then_with(|| a.cmp(b))
}

fn word(text: &str, tone: Tone) -> Cell {
    Cell { text: text.to_owned(), key: Key::Text(text.to_owned()), tone }
}

fn named(text: &str) -> Cell {
    word(text, Tone::Plain)
}

/// A figure; zero and what is not known step back.
fn figure(value: Option<f64>, show: fn(Option<f64>) -> String) -> Cell {
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

fn of(rates: Option<Rates>, value: fn(&Rates) -> f64) -> Option<f64> {
    rates.as_ref().map(value)
}

fn process(pid: Option<i32>) -> Cell {
    let pid = pid.filter(|pid| *pid != 0);
    let text = pid.map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string());
    Cell { text, key: Key::Number(pid.map(f64::from)), tone: Tone::Dim }
}

fn worker(worker: &Worker) -> Row {
    let tone = match worker.doing {
        Doing::Away => Tone::Bad,
        Doing::Busy => Tone::Good,
        Doing::Unknown | Doing::Asleep | Doing::Polling => Tone::Plain,
    };
    let core = worker.core.map(f64::from);
    let core = Cell {
        text: worker.core.map_or_else(|| "any".to_owned(), |core| core.to_string()),
        key: Key::Number(core),
        tone: Tone::Plain,
    };
    let rates = worker.rates;
    let cells = vec![
        named(&worker.name),
        core,
        word(worker.doing.word(), tone),
        figure(worker.busy_percent, percent),
        figure(worker.polling_percent, percent),
        figure(worker.asleep_percent, percent),
        figure(worker.polls, count),
        figure(of(rates, |rates| rates.reads), count),
        figure(of(rates, |rates| rates.writes), count),
        figure(of(rates, |rates| rates.read_bytes), bytes),
        figure(of(rates, |rates| rates.written_bytes), bytes),
        total(worker.controllers as u64),
        errors(worker.errors, rates),
        process(Some(worker.pid)),
        named(&worker.tenant),
    ];
    Row { cells, trend: worker.trend.clone(), full: Some(100.0) }
}

fn controller(controller: &Controller) -> Row {
    let tone = match controller.state {
        "connected" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Dim,
    };
    let (rates, latency) = (controller.rates, controller.latency);
    let used = controller.queues_used;
    let queues = match controller.queues {
        0 => used.to_string(),
        all => format!("{used}/{all}"),
    };
    let cells = vec![
        named(&controller.name),
        word(controller.state, tone),
        figure(of(rates, |rates| rates.reads), count),
        figure(of(rates, |rates| rates.writes), count),
        figure(of(rates, |rates| rates.read_bytes), bytes),
        figure(of(rates, |rates| rates.written_bytes), bytes),
        figure(latency.map(|latency| latency.mean_ns), nanos),
        figure(latency.map(|latency| latency.p50_ns), nanos),
        figure(latency.map(|latency| latency.p99_ns), nanos),
        errors(controller.errors, rates),
        Cell { text: queues, key: Key::Number(Some(used as f64)), tone: Tone::Plain },
        figure(controller.depth, depth),
        figure(of(rates, |rates| rates.others), count),
        process(controller.client),
        named(&controller.subsystem),
    ];
    Row { cells, trend: controller.trend.clone(), full: None }
}

fn queue(queue: &Queue) -> Row {
    let cells = vec![
        named(&queue.controller),
        Cell {
            text: queue.id.to_string(),
            key: Key::Number(Some(f64::from(queue.id))),
            tone: Tone::Plain,
        },
        named(&queue.worker),
        figure(queue.commands, count),
        figure(queue.completions, count),
        figure(queue.share_percent, percent),
        total(queue.commands_total),
    ];
    Row { cells, trend: queue.trend.clone(), full: None }
}

fn namespace(namespace: &Namespace) -> Row {
    let tone = if namespace.state == "failed" { Tone::Bad } else { Tone::Dim };
    let rates = namespace.rates;
    let cells = vec![
        named(&namespace.name),
        named(&namespace.volume),
        word(namespace.state, tone),
        figure(of(rates, |rates| rates.reads), count),
        figure(of(rates, |rates| rates.writes), count),
        figure(of(rates, |rates| rates.read_bytes), bytes),
        figure(of(rates, |rates| rates.written_bytes), bytes),
        figure(of(rates, |rates| rates.others), count),
        errors(namespace.errors, rates),
    ];
    Row { cells, trend: namespace.trend.clone(), full: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_value_for_every_column() {
        let figures = crate::top::example::figures();
        for view in View::ALL {
            let rows = view.rows(&figures);
            assert_eq!(rows.len(), view.len(&figures));
            assert!(!rows.is_empty());
            for row in rows {
                assert_eq!(row.cells.len(), view.columns().len(), "{view:?}");
            }
        }
    }

    #[test]
    fn rows_are_sorted_by_value_and_names_by_their_numbers() {
        assert_eq!(natural("vm2", "vm10"), Ordering::Less);
        assert_eq!(natural("a10", "b2"), Ordering::Less);
        assert_eq!(natural("vm02", "vm2"), Ordering::Less);
        assert_eq!(natural("99999999999999999999999", "1"), Ordering::Less, "too long to be one");
        let row =
            |value| Row { cells: vec![figure(value, count)], trend: Trend::default(), full: None };
        let mut rows = [row(Some(2.0)), row(None), row(Some(10_000.0))];
        let texts = |rows: &[Row]| rows.iter().map(|r| r.cells[0].text.clone()).collect::<Vec<_>>();
        sort(&mut rows, 0, true);
        assert_eq!(texts(&rows), ["10.0k", "2", "-"]);
        sort(&mut rows, 0, false);
        assert_eq!(texts(&rows), ["-", "2", "10.0k"]);
        sort(&mut rows, 7, false);
        assert_eq!(texts(&rows), ["-", "2", "10.0k"], "a column that is not there sorts nothing");
    }

    #[test]
    fn a_filter_looks_at_every_value() {
        let figures = crate::top::example::figures();
        let rows = View::Controllers.rows(&figures);
        let count = |filter: &str| rows.iter().filter(|row| row.matches(filter)).count();
        assert_eq!(count(""), rows.len());
        assert_eq!(count("connected"), 1);
        assert_eq!(count("vm"), rows.len());
        assert_eq!(count("no such thing"), 0);
    }
}
