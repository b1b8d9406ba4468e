//! The views as tables: the rows that figures make, sorted, and filtered by a text.

use super::column::{CONTROLLERS, NAMESPACES, QUEUES, WORKERS, heads, rows};
use super::figures::Figures;
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
    pub fn columns(self) -> Vec<Column> {
        match self {
            Self::Workers => heads(WORKERS),
            Self::Controllers => heads(CONTROLLERS),
            Self::Queues => heads(QUEUES),
            Self::Namespaces => heads(NAMESPACES),
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
            Self::Workers => rows(WORKERS, &figures.workers),
            Self::Controllers => rows(CONTROLLERS, &figures.controllers),
            Self::Queues => rows(QUEUES, &figures.queues),
            Self::Namespaces => rows(NAMESPACES, &figures.namespaces),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::column::figure;
    use crate::top::number::count;

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
        let found = |filter: &str| rows.iter().filter(|row| row.matches(filter)).count();
        assert_eq!(found(""), rows.len());
        assert_eq!(found("connected"), 1);
        assert_eq!(found("vm"), rows.len());
        assert_eq!(found("no such thing"), 0);
    }
}
