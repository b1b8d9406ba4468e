//! Metrics as a page of text: [`definition`] says which there are, [`Page`] collects their values, [`encode()`] writes
//! them down in the OpenMetrics format or in Prometheus's older one, [`http`] serves the page.
//!
//! Nothing here counts. Counters live in the segments, where their writers count for nothing; a page is made of them at
//! the moment in which somebody asks for it.

pub mod definition;
mod encode;
pub mod http;

pub use definition::{ALL, Definition, Kind};
pub use encode::{Format, encode};

/// The labels of a sample, in the order in which they are written.
pub type Labels = Vec<(&'static str, String)>;

/// The value of a sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Count(u64),
    /// Nanoseconds, written as seconds.
    Nanoseconds(u64),
    /// A distribution.
    Histogram(Histogram),
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bound in nanoseconds, number of durations up to it (those of lower bounds included), an example among
    /// those that are in no lower one. Ascending.
    pub buckets: Vec<(u64, u64, Option<Exemplar>)>,
    /// All durations.
    pub count: u64,
    /// Their sum in nanoseconds.
    pub sum: u64,
    /// An example past the last bound.
    pub beyond: Option<Exemplar>,
}

/// A traced command as an example of a bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// Its trace id, 32 hexadecimal digits.
    pub trace_id: String,
    /// Its duration in nanoseconds.
    pub nanoseconds: u64,
    /// When it was, in nanoseconds since 1970.
    pub time: u64,
}

/// Values of metrics at one moment.
#[derive(Clone, Debug, Default)]
pub struct Page {
    samples: Vec<(&'static Definition, Labels, Value)>,
}

impl Page {
    /// Adds a sample.
    pub fn push(&mut self, definition: &'static Definition, labels: Labels, value: Value) {
        self.samples.push((definition, labels, value));
    }

    /// Adds a whole number.
    pub fn count(&mut self, definition: &'static Definition, labels: Labels, value: u64) {
        self.push(definition, labels, Value::Count(value));
    }

    /// Adds a time.
    pub fn time(&mut self, definition: &'static Definition, labels: Labels, nanoseconds: u64) {
        self.push(definition, labels, Value::Nanoseconds(nanoseconds));
    }

    /// The samples of one metric.
    pub fn of(&self, definition: &'static Definition) -> impl Iterator<Item = (&Labels, &Value)> {
        let name = definition.name;
        let samples = self.samples.iter().filter(move |(other, ..)| other.name == name);
        samples.map(|(_, labels, value)| (labels, value))
    }
}
