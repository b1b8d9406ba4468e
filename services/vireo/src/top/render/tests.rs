use super::*;
use crate::top::example;
use crate::top::model::Model;
use crate::top::sample::{Inventory, Sample};
use crate::top::source::Update;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::time::Duration;

fn model(view: View) -> Model {
    let history = example::history();
    Model::with_history("/run/vireo/api.sock".into(), view, Duration::from_secs(1), history)
}

fn screen(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model, Glyphs::Blocks)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
}

fn press(model: &mut Model, key: char) {
    model.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
}

#[test]
fn controllers_fit_on_a_small_terminal_and_all_is_shown_on_a_large_one() {
    let mut model = model(View::Controllers);
    let text = screen(&mut model, 80, 24);
    let head = text.lines().find(|line| line.starts_with("CONTROLLER")).unwrap();
    for title in ["STATE", "RD IOPS", "WR IOPS", "RD B/s", "WR B/s", "MEAN", "P50", "P99"] {
        assert!(head.contains(title), "{title} in\n{text}");
    }
    let row = text.lines().find(|line| line.starts_with("vm0")).unwrap();
    for value in ["connected", "12.3k", "4100", "48.0M", "16.0M", "83.0us", "76.0us", "412us"] {
        assert!(row.contains(value), "{value} in\n{text}");
    }
    assert!(text.contains("waiting"), "{text}");
    assert!(text.contains("IOPS 16.4k: 12.3k read, 4100 write"), "{text}");

    let text = screen(&mut model, 200, 50);
    let parts = ["SUBSYSTEM", "CLIENT", "12345", "1/64", "DEPTH", "1.36", "LAST MINUTE", "█"];
    for part in parts.into_iter().chain(["THR/s", "250", "WAIT", "1.50ms"]) {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn workers_tell_what_they_do_with_their_time() {
    let mut model = model(View::Workers);
    let text = screen(&mut model, 80, 24);
    let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
    for value in ["polling", "43%", "57%", "310k"] {
        assert!(row("w0").contains(value), "{value} in\n{text}");
    }
    for value in ["asleep", "99%", "0.1%"] {
        assert!(row("w1").contains(value), "{value} in\n{text}");
    }
    let text = screen(&mut model, 200, 24);
    let row = text.lines().find(|line| line.starts_with("w0")).unwrap();
    for value in ["83.0us", "76.0us", "412us", "250", "1.50ms", "default"] {
        assert!(row.contains(value), "{value} in\n{text}");
    }
}

#[test]
fn queues_tell_how_long_commands_take_where_they_are_served() {
    let text = screen(&mut model(View::Queues), 80, 24);
    let row = text.lines().find(|line| line.starts_with("vm0")).unwrap();
    for value in ["w0", "16.4k", "100%", "83.0us", "76.0us", "412us"] {
        assert!(row.contains(value), "{value} in\n{text}");
    }
}

#[test]
fn every_view_fits_on_every_size() {
    for view in View::ALL {
        let mut model = model(view);
        for (width, height) in [(60, 10), (80, 24), (81, 11), (132, 43), (200, 50), (500, 200)] {
            let text = screen(&mut model, width, height);
            assert!(text.starts_with("vireo top"), "{text}");
            assert!(text.contains(view.columns()[0].title), "{text}");
            assert!(text.contains("quit"), "{text}");
        }
    }
}

#[test]
fn a_terminal_that_is_too_small_says_so() {
    let mut model = model(View::Workers);
    for (width, height) in [(59, 24), (80, 9), (20, 3), (1, 1)] {
        let text = screen(&mut model, width, height);
        assert!(width < 15 || text.contains("too small"), "{text}");
    }
    assert!(screen(&mut model, 40, 5).contains("needs 60x10"));
}

#[test]
fn a_lost_manager_is_told_over_the_last_figures() {
    let mut model = model(View::Controllers);
    model.update(Update::Lost("nobody listens at /run/vireo/api.sock".into()));
    let text = screen(&mut model, 80, 24);
    assert!(text.contains("nobody listens at /run/vireo/api.sock; trying again"), "{text}");
    assert!(text.contains("no manager") && text.contains("vm0"), "{text}");
    let mut fresh = Model::new("/x".into(), View::Workers, Duration::from_secs(1));
    assert!(screen(&mut fresh, 80, 24).contains("waiting for the manager"));
}

#[test]
fn what_is_missing_is_told() {
    let mut model = model(View::Controllers);
    let missing = vec!["worker w1: is not there".to_owned(), "another".to_owned()];
    let inventory = Inventory { missing, ..Inventory::default() };
    model.update(Update::Inventory(Box::new(inventory)));
    let text = screen(&mut model, 80, 24);
    assert!(text.contains("missing: worker w1: is not there (and 1 more)"), "{text}");
    assert!(text.contains("not all is served"), "{text}");
}

#[test]
fn help_filter_and_pause_are_seen() {
    let mut model = model(View::Controllers);
    press(&mut model, '?');
    for (width, height) in [(60, 10), (80, 24)] {
        let text = screen(&mut model, width, height);
        assert!(text.contains("sort the other way round") && text.contains("quit"), "{text}");
    }
    // No line of it is cut off.
    let text = screen(&mut model, 80, 30);
    for part in ["fetch to  ", "how long,", "the last minute.", "Intervals: 0.1 s to 60 s."] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    press(&mut model, '?');
    press(&mut model, '/');
    press(&mut model, 'z');
    press(&mut model, 'z');
    let text = screen(&mut model, 80, 24);
    assert!(text.contains("/zz_") && text.contains("no row has this text"), "{text}");
    model.key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
    press(&mut model, 'p');
    assert!(screen(&mut model, 80, 24).contains("PAUSED"));
}

#[test]
fn long_names_cost_columns_and_are_cut_at_last() {
    let mut model = model(View::Controllers);
    let mut sample = Sample { time: 2e9, ..Sample::default() };
    for index in 0..3 {
        sample.controllers.push(crate::top::sample::ControllerCounts {
            name: format!("a-controller-with-a-rather-long-name-{index}"),
            ..Default::default()
        });
    }
    model.update(Update::Sample(Box::new(sample)));
    let text = screen(&mut model, 80, 24);
    assert!(text.contains("a-controller-with-a") && text.contains('~'), "{text}");
    let text = screen(&mut model, 200, 24);
    assert!(text.contains("a-controller-with-a-rather-long-name-2"), "{text}");
}

#[test]
fn more_rows_than_lines_are_scrolled_with_the_cursor() {
    let mut model = model(View::Controllers);
    let mut sample = Sample { time: 2e9, ..Sample::default() };
    for index in 0..100 {
        let name = format!("vm{index}");
        sample
            .controllers
            .push(crate::top::sample::ControllerCounts { name, ..Default::default() });
    }
    model.update(Update::Sample(Box::new(sample)));
    let text = screen(&mut model, 80, 24);
    assert!(text.contains("vm0 ") && !text.contains("vm99"), "{text}");
    model.key(KeyEvent::new(KeyCode::End, KeyModifiers::NONE));
    let text = screen(&mut model, 80, 24);
    assert!(text.contains("vm99") && !text.contains("vm0 "), "{text}");
    model.key(KeyEvent::new(KeyCode::PageUp, KeyModifiers::NONE));
    assert!(screen(&mut model, 80, 24).contains("vm80"));
}
