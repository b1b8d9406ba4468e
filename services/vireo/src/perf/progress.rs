//! How far a run is, on standard error, where that is a terminal.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::options::Load;
use super::units::show_count;

/// A line that is drawn again and again, or nothing.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shown if standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        if !stderr().is_terminal() {
            return Self::silent();
        }
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Self { bar: Some(bar) }
    }

    /// Never shown.
    #[must_use]
    pub fn silent() -> Self {
        Self { bar: None }
    }

    /// What is running, before the bar.
    pub fn title(&self, title: String) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(title);
        }
    }

    /// Shows where the run is: `ios` were counted since the warm-up, or in it.
    pub fn show(&self, elapsed: Duration, load: &Load, ios: u64, sweeping: bool) {
        let Some(bar) = &self.bar else { return };
        let total = (load.warm_up + load.time).as_secs_f64();
        bar.set_position((elapsed.as_secs_f64() / total * 1000.0) as u64);
        let counted = elapsed.saturating_sub(load.warm_up).as_secs_f64();
        bar.set_message(match () {
            () if sweeping => "checking what was written".to_owned(),
            () if counted <= 0.0 => "warm-up".to_owned(),
            () => format!("{} IOPS", show_count(ios as f64 / counted)),
        });
        bar.tick();
    }

    /// Takes it away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
