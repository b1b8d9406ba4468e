//! Reading a table of the configuration: takes keys by name and type, notes every mistake and goes on, so that a person
//! sees all of them at once. (A derived deserializer stops at the first.)

use super::mistake::{Mistake, suggestion};
use super::units::{format_duration, format_size, parse_duration, parse_size};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

/// The first size that is past every file offset.
const TOO_LONG: u64 = 1 << 63;

/// Where mistakes are noted.
pub(super) type Notes = RefCell<Vec<Mistake>>;

/// A table and where it stands.
pub(super) struct Section<'a> {
    table: &'a Table,
    path: String,
    known: RefCell<Vec<&'static str>>,
    notes: &'a Notes,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: &'a Table, notes: &'a Notes) -> Self {
        Self { table, path: String::new(), known: RefCell::default(), notes }
    }

    /// The path of a key in this table.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake at a key of this table.
    pub(super) fn wrong(&self, key: &str, wrong: impl Into<String>, right: impl Into<String>) {
        self.notes.borrow_mut().push(Mistake::new(self.key(key), wrong, right));
    }

    /// True if the key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The tables of `[[key]]`.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let right = format!("write [[{}]] before each", self.key(key).replace(['[', ']'], ""));
        let Some(value) = self.get(key) else { return Vec::new() };
        let Value::Array(values) = value else {
            self.wrong(key, format!("is {}, not a list of tables", kind(value)), right);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let path = format!("{}[{index}]", self.key(key));
            match value {
                Value::Table(table) => sections.push(Section {
                    table,
                    path,
                    known: RefCell::default(),
                    notes: self.notes,
                }),
                other => {
                    let wrong = format!("is {}, not a table", kind(other));
                    self.notes.borrow_mut().push(Mistake::new(path, wrong, right.clone()));
                }
            }
        }
        sections
    }

    /// The table `[key]`.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a>> {
        match self.get(key)? {
            Value::Table(table) => Some(Section {
                table,
                path: self.key(key),
                known: RefCell::default(),
                notes: self.notes,
            }),
            other => {
                let wrong = format!("is {}, not a table", kind(other));
                self.wrong(key, wrong, format!("write [{key}] before its keys"));
                None
            }
        }
    }

    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) if !text.contains('\0') => Some(text.clone()),
            other => {
                let wrong = format!("is {}, not text", kind(other));
                self.wrong(key, wrong, format!("write {key} = \"...\""));
                None
            }
        }
    }

    /// Text that has to be there.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<String> {
        if !self.has(key) {
            self.get(key);
            self.wrong(key, "is missing", format!("add {key} = \"{example}\""));
            return None;
        }
        self.text(key)
    }

    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let value = self.get(key)?;
        let texts = match value {
            Value::Array(values) => {
                values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        if texts.is_none() {
            let wrong = format!("is {}, not a list of texts", kind(value));
            self.wrong(key, wrong, format!("write {key} = [\"...\"]"));
        }
        texts
    }

    pub(super) fn path(&self, key: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(key)?);
        if path.is_absolute() {
            return Some(path);
        }
        let wrong = format!("\"{}\" is not an absolute path", path.display());
        self.wrong(key, wrong, "start it with /");
        None
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        match self.get(key)? {
            Value::Boolean(value) => Some(*value),
            other => {
                let wrong = format!("is {}, neither true nor false", kind(other));
                self.wrong(key, wrong, format!("write {key} = true or {key} = false"));
                None
            }
        }
    }

    pub(super) fn integer(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let right = format!("write a whole number from {} to {}", range.start(), range.end());
        match self.get(key)? {
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(number) if range.contains(&number) => Some(number),
                _ => {
                    self.wrong(key, format!("{value} is out of range"), right);
                    None
                }
            },
            other => {
                self.wrong(key, format!("is {}, not a number", kind(other)), right);
                None
            }
        }
    }

    /// Bytes: `"256MiB"`, or a number of bytes; not 0, and no more than a file offset can say.
    pub(super) fn size(&self, key: &'static str) -> Option<u64> {
        let value = self.get(key)?;
        let size = match value {
            Value::Integer(value) => u64::try_from(*value).ok(),
            Value::String(text) => parse_size(text),
            _ => None,
        };
        match size {
            Some(0 | TOO_LONG..) | None => {
                let right = "write a number of bytes, or one with a unit as in \"256MiB\"";
                self.wrong(key, format!("{value} is not a size"), right);
                None
            }
            size => size,
        }
    }

    /// [`Section::size`], a power of two in the range.
    pub(super) fn power_of_two(
        &self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let size = self.size(key)?;
        if size.is_power_of_two() && range.contains(&size) {
            return Some(size);
        }
        let (low, high) = (format_size(*range.start()), format_size(*range.end()));
        let wrong = format!("{} is not a power of two in range", format_size(size));
        self.wrong(key, wrong, format!("write a power of two from \"{low}\" to \"{high}\""));
        None
    }

    pub(super) fn duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let value = self.get(key)?;
        let duration = value.as_str().and_then(parse_duration);
        let (low, high) = (format_duration(*range.start()), format_duration(*range.end()));
        let right = format!("write a duration from \"{low}\" to \"{high}\"");
        match duration {
            Some(duration) if range.contains(&duration) => Some(duration),
            Some(_) => {
                self.wrong(key, format!("{value} is out of range"), right);
                None
            }
            None => {
                self.wrong(key, format!("{value} is not a duration"), right);
                None
            }
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known = words.iter().map(|(word, _)| *word);
        self.wrong(key, format!("\"{text}\" is not known"), suggestion(&text, known));
        None
    }

    /// Notes every key that nobody asked for. `elsewhere` says of keys with meaning in another case what that case is.
    pub(super) fn finish(self, elsewhere: &[(&str, &str)]) {
        let known = self.known.borrow();
        for key in self.table.keys().filter(|key| !known.contains(&key.as_str())) {
            match elsewhere.iter().find(|(other, _)| other == key) {
                Some((_, case)) => self.wrong(key, format!("is for {case} only"), "remove it"),
                None => self.wrong(key, "unknown key", suggestion(key, known.iter().copied())),
            }
        }
    }

    fn get(&self, key: &'static str) -> Option<&'a Value> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        self.table.get(key)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}
