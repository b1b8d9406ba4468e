//! `vireo perf` and `vireo identify` as a person runs them.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::target::{program, run};

/// Longest that something wrong may take to be told. It takes five seconds at most, unless the machine stalls.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long targets are waited for that are to answer: they stall when the machine does.
const ANSWER: &str = "50s";

/// How a command of `vireo` ended.
#[derive(Debug)]
pub struct Ended {
    /// Its words, for messages.
    pub words: String,
    /// Its output.
    pub output: Output,
    /// How long it took.
    pub took: Duration,
}

/// Runs `vireo` with these words to its end. A command that talks to a target waits long for it, unless the words say how
/// long.
pub fn vireo<'a>(words: impl IntoIterator<Item = &'a str>) -> Ended {
    let mut words: Vec<&str> = words.into_iter().collect();
    let option = match words.first() {
        Some(&"perf") => Some("--connect-timeout"),
        Some(&"identify") => Some("--timeout"),
        _ => None,
    };
    if let Some(option) = option.filter(|option| !words.contains(option)) {
        words.extend([option, ANSWER]);
    }
    let mut command = Command::new(program("vireo"));
    command.args(&words);
    let started = Instant::now();
    let output = run(command);
    Ended { words: words.join(" "), output, took: started.elapsed() }
}

impl Ended {
    /// What it printed.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it complained of.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// What it printed, if it succeeded.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn success(&self) -> String {
        assert!(
            self.output.status.success(),
            "vireo {}: {}{}",
            self.words,
            self.stderr(),
            self.stdout()
        );
        self.stdout()
    }

    /// What it printed, as JSON, whatever its exit status.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout).unwrap_or_else(|error| {
            panic!("vireo {}: {error}: {}{}", self.words, self.stderr(), self.stdout())
        })
    }

    /// Checks that it failed with this status, soon, by one line that has each of these words in it.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn refused(&self, status: i32, told: &[&str]) {
        let (code, line) = (self.output.status.code(), self.stderr());
        assert_eq!(code, Some(status), "vireo {}: {line}{}", self.words, self.stdout());
        assert_eq!(line.lines().count(), 1, "vireo {}: {line}", self.words);
        assert!(line.starts_with("vireo "), "vireo {}: {line}", self.words);
        for word in told {
            assert!(line.contains(word), "vireo {}: no {word:?} in: {line}", self.words);
        }
        assert!(self.took < PATIENCE, "vireo {} took {:?}: {line}", self.words, self.took);
        assert!(self.output.stdout.is_empty(), "vireo {}: {}", self.words, self.stdout());
    }
}
