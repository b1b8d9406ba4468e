//! What a person has chosen to see, and what keys change of it. Knows nothing of how it is drawn.

use super::figures::Figures;
use super::history::History;
use super::source::Update;
use super::table::{self, Row, View};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::time::Duration;

/// Intervals that `+` and `-` step through.
const INTERVALS: [Duration; 9] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];
/// Shortest and longest interval.
pub const INTERVAL_RANGE: (Duration, Duration) = (INTERVALS[0], INTERVALS[8]);
/// Longest text to filter by.
const FILTER: usize = 40;

/// What the terminal loop has to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Draw.
    Draw,
    /// End.
    Quit,
    /// Give the terminal back until somebody continues this process.
    Suspend,
    /// Read at another interval.
    Interval(Duration),
}

/// How a view is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// The column.
    pub column: usize,
    /// The greatest first.
    pub descending: bool,
}

/// Everything that is drawn.
#[derive(Debug)]
pub struct Model {
    /// Where the figures come from, for the title.
    pub source: String,
    /// What is looked at.
    pub view: View,
    /// Nothing moves.
    pub paused: bool,
    /// The keys are explained.
    pub help: bool,
    /// Only rows with this text.
    pub filter: String,
    /// The filter is being typed; this is how it was before.
    pub typing: Option<String>,
    /// Between two readings.
    pub interval: Duration,
    /// Why nothing new comes; `None` while it comes.
    pub lost: Option<String>,
    /// The row with the cursor, of those that are shown.
    pub selected: usize,
    sorts: [Sort; 4],
    history: History,
    shown: Option<Figures>,
    /// Rows that fit on the screen, as it was drawn last.
    page: usize,
}

impl Model {
    /// Nothing was read yet.
    #[must_use]
    pub fn new(source: String, view: View, interval: Duration) -> Self {
        Self {
            source,
            view,
            paused: false,
            help: false,
            filter: String::new(),
            typing: None,
            interval,
            lost: None,
            selected: 0,
            sorts: [Sort { column: 0, descending: false }; 4],
            history: History::default(),
            shown: None,
            page: 10,
        }
    }

    /// With readings from elsewhere, for tests.
    #[cfg(test)]
    pub(super) fn with_history(
        source: String,
        view: View,
        interval: Duration,
        history: History,
    ) -> Self {
        let mut model = Self { history, ..Self::new(source, view, interval) };
        model.show();
        model
    }

    /// The figures that are shown; `None` before there are any.
    #[must_use]
    pub fn figures(&self) -> Option<&Figures> {
        self.shown.as_ref()
    }

    /// How the present view is sorted.
    #[must_use]
    pub fn sort(&self) -> Sort {
        self.sorts[self.view.index()]
    }

    /// The rows of the present view as they are shown.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let Some(figures) = &self.shown else { return Vec::new() };
        let filter = self.filter.to_lowercase();
        let mut rows = self.view.rows(figures);
        rows.retain(|row| row.matches(&filter));
        let Sort { column, descending } = self.sort();
        table::sort(&mut rows, column, descending);
        rows
    }

    /// Notes how many rows the screen has room for.
    pub fn set_page(&mut self, rows: usize) {
        self.page = rows.max(1);
    }

    /// Takes over what the source told. While paused it is kept for later.
    pub fn update(&mut self, update: Update) {
        match update {
            Update::Sample(sample) => {
                self.lost = None;
                self.history.sample(*sample);
            }
            Update::Inventory(inventory) => self.history.inventory(*inventory),
            Update::Lost(line) => {
                self.lost = Some(line);
                self.history.interrupt();
            }
            Update::Stop => {}
        }
        if !self.paused {
            self.show();
        }
    }

    /// Shows the newest figures; the last ones stay where there are none.
    fn show(&mut self) {
        if let Some(figures) = self.history.figures() {
            self.shown = Some(figures);
        }
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Effect {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Effect::Quit,
                KeyCode::Char('z') => Effect::Suspend,
                _ => Effect::Draw,
            };
        }
        if self.typing.is_some() {
            self.type_filter(key.code);
            return Effect::Draw;
        }
        if self.help {
            // Any key ends it; that of quitting quits.
            self.help = false;
            return if key.code == KeyCode::Char('q') { Effect::Quit } else { Effect::Draw };
        }
        self.command(key.code)
    }

    fn command(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Char(digit @ '1'..='4') => {
                self.switch(View::ALL[digit as usize - '1' as usize]);
            }
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(View::ALL.len() - 1),
            KeyCode::Char('>') | KeyCode::Right => self.sort_by(1),
            KeyCode::Char('<') | KeyCode::Left => {
                self.sort_by(self.view.columns().len() - 1);
            }
            KeyCode::Char('r') => {
                let sort = &mut self.sorts[self.view.index()];
                sort.descending = !sort.descending;
            }
            KeyCode::Char('/') => self.typing = Some(self.filter.clone()),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                if !self.paused {
                    self.show();
                }
            }
            KeyCode::Char('+' | '=') => return self.step(1),
            KeyCode::Char('-') => return self.step(-1),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected + 1),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(self.page)),
            KeyCode::PageDown => self.select(self.selected + self.page),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            _ => {}
        }
        Effect::Draw
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = None,
            KeyCode::Esc => self.filter = self.typing.take().unwrap_or_default(),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if c.is_ascii_graphic() && self.filter.len() < FILTER => {
                self.filter.push(c);
            }
            _ => {}
        }
        self.selected = 0;
    }

    fn switch(&mut self, view: View) {
        self.view = view;
        self.selected = 0;
    }

    fn turn(&mut self, steps: usize) {
        self.switch(View::ALL[(self.view.index() + steps) % View::ALL.len()]);
    }

    /// Sorts by a column further on: names upwards, numbers from the greatest.
    fn sort_by(&mut self, steps: usize) {
        let columns = self.view.columns();
        let column = (self.sort().column + steps) % columns.len();
        self.sorts[self.view.index()] = Sort { column, descending: columns[column].right };
        self.selected = 0;
    }

    fn select(&mut self, row: usize) {
        self.selected = row.min(self.rows().len().saturating_sub(1));
    }

    /// The next longer or shorter interval.
    fn step(&mut self, direction: i8) -> Effect {
        let next = match direction {
            1 => INTERVALS.iter().find(|interval| **interval > self.interval),
            _ => INTERVALS.iter().rev().find(|interval| **interval < self.interval),
        };
        match next {
            Some(interval) => {
                self.interval = *interval;
                Effect::Interval(*interval)
            }
            None => Effect::Draw,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::example;
    use crate::top::sample::Sample;

    fn model() -> Model {
        let interval = Duration::from_secs(1);
        Model::with_history("/run/x".into(), View::Controllers, interval, example::history())
    }

    fn press(model: &mut Model, keys: &str) -> Effect {
        let codes = keys.chars().map(|c| match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            '\t' => KeyCode::Tab,
            c => KeyCode::Char(c),
        });
        codes.fold(Effect::Draw, |_, code| model.key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn names(model: &Model) -> Vec<String> {
        model.rows().iter().map(|row| row.cells[0].text.clone()).collect()
    }

    #[test]
    fn views_are_switched_by_number_and_in_turn() {
        let mut model = model();
        press(&mut model, "1");
        assert_eq!((model.view, names(&model)), (View::Workers, vec!["w0".into(), "w1".into()]));
        press(&mut model, "\t\t\t");
        assert_eq!(model.view, View::Namespaces);
        press(&mut model, "\t");
        assert_eq!(model.view, View::Workers);
        model.key(KeyEvent::new(KeyCode::BackTab, KeyModifiers::SHIFT));
        assert_eq!(model.view, View::Namespaces);
        press(&mut model, "9");
        assert_eq!(model.view, View::Namespaces);
    }

    #[test]
    fn a_column_sorts_from_its_greatest_and_can_be_turned_around() {
        let mut model = model();
        press(&mut model, ">>");
        let title = model.view.columns()[model.sort().column].title;
        assert_eq!((title, model.sort().descending), ("RD IOPS", true));
        assert_eq!(names(&model), ["vm0", "vm1"]);
        press(&mut model, "r");
        assert_eq!(names(&model), ["vm1", "vm0"]);
        press(&mut model, "1");
        assert_eq!(model.sort().column, 0, "each view has its own order");
        press(&mut model, "<");
        assert_eq!(model.sort().column, model.view.columns().len() - 1);
        press(&mut model, ">");
        assert_eq!(model.sort(), Sort { column: 0, descending: false });
    }

    #[test]
    fn a_filter_is_typed_and_given_up() {
        let mut model = model();
        press(&mut model, "/VM1");
        assert!(model.typing.is_some());
        assert_eq!(names(&model), ["vm1"], "it works as it is typed");
        assert_eq!(press(&mut model, "q\u{8}\n"), Effect::Draw, "letters are letters there");
        assert_eq!((model.filter.as_str(), model.typing.is_none()), ("VM1", true));
        press(&mut model, "/x\u{1b}");
        assert_eq!(model.filter, "VM1", "as it was before");
        press(&mut model, "\u{1b}");
        assert_eq!(names(&model), ["vm0", "vm1"]);
        press(&mut model, &format!("/{}", "x".repeat(1000)));
        assert_eq!(model.filter.len(), FILTER);
    }

    #[test]
    fn nothing_moves_while_paused() {
        let mut model = model();
        let before = model.figures().map(|figures| figures.time);
        press(&mut model, "p");
        let later = Sample { time: before.unwrap_or(0.0) + 1.0, ..Sample::default() };
        model.update(Update::Sample(Box::new(later)));
        assert_eq!(model.figures().map(|figures| figures.time), before);
        press(&mut model, "p");
        assert_eq!(model.figures().map(|figures| figures.time), before.map(|time| time + 1.0));
    }

    #[test]
    fn what_was_read_stays_when_the_manager_goes() {
        let mut model = model();
        model.update(Update::Lost("it is gone".into()));
        assert_eq!(model.lost.as_deref(), Some("it is gone"));
        assert!(model.figures().is_some());
        model.update(Update::Sample(Box::default()));
        assert_eq!(model.lost, None);
    }

    #[test]
    fn intervals_have_ends() {
        let mut model = model();
        assert_eq!(press(&mut model, "+"), Effect::Interval(Duration::from_secs(2)));
        assert_eq!(press(&mut model, "--"), Effect::Interval(Duration::from_millis(500)));
        press(&mut model, "---------");
        assert_eq!((model.interval, press(&mut model, "-")), (INTERVAL_RANGE.0, Effect::Draw));
        press(&mut model, "+++++++++++");
        assert_eq!((model.interval, press(&mut model, "+")), (INTERVAL_RANGE.1, Effect::Draw));
        model.interval = Duration::from_millis(1500);
        assert_eq!(press(&mut model, "+"), Effect::Interval(Duration::from_secs(2)));
    }

    #[test]
    fn the_cursor_stays_on_the_rows() {
        let mut model = model();
        press(&mut model, "jjjjj");
        assert_eq!(model.selected, 1);
        press(&mut model, "kkkkk");
        assert_eq!(model.selected, 0);
        model.key(KeyEvent::new(KeyCode::End, KeyModifiers::NONE));
        assert_eq!(model.selected, 1);
        press(&mut model, "/no such thing\n");
        model.key(KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE));
        assert_eq!(model.selected, 0);
    }

    #[test]
    fn it_ends_by_q_and_by_control_c_wherever_one_is() {
        let mut model = model();
        assert_eq!(press(&mut model, "?q"), Effect::Quit);
        assert_eq!(press(&mut model, "?x"), Effect::Draw);
        assert!(!model.help);
        press(&mut model, "/");
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(model.key(control('c')), Effect::Quit);
        assert_eq!(model.key(control('z')), Effect::Suspend);
    }
}
