//! Draws a model. Decides what fits: the same rows on 60 columns and on 300.

use super::figures::Figures;
use super::latency::WINDOW_SECONDS;
use super::model::{INTERVAL_RANGE, Model};
use super::number::{bytes, count, percent};
use super::table::{Column, Row, Tone, View};
use super::trend::Glyphs;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

/// The smallest terminal on which anything can be read.
const LEAST: (u16, u16) = (60, 10);
/// Characters of a name that are shown wherever they are needed, before columns are.
const NAME: (u16, u16) = (6, 20);
/// Characters of bars: below the first they say nothing, above the second nothing more.
const TREND: (u16, u16) = (10, 60);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &mut Model, glyphs: Glyphs) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        return too_small(frame, area);
    }
    let message = message(model);
    let [title, totals, tabs, head, body, notice, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(message.is_some().into()),
        Constraint::Length(1),
    ])
    .areas(area);
    put(frame, title, title_line(model, title.width));
    put(frame, totals, totals_line(model.figures(), totals.width, glyphs));
    put(frame, tabs, tabs_line(model));
    model.set_page(body.height.into());
    rows(frame, head, body, model, glyphs);
    if let Some(message) = message {
        put(frame, notice, message);
    }
    put(frame, foot, foot_line(model));
    if model.help {
        help(frame, area);
    }
}

fn too_small(frame: &mut Frame<'_>, area: Rect) {
    let text = format!(
        "too small: {}x{}\nneeds {}x{}\nq quits",
        area.width, area.height, LEAST.0, LEAST.1
    );
    frame.render_widget(Paragraph::new(text), area);
}

fn put(frame: &mut Frame<'_>, area: Rect, line: Line<'_>) {
    frame.render_widget(line, area);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn bad() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

/// Between what stands at the left and what stands at the right.
fn apart(width: u16, left: Vec<Span<'static>>, right: Vec<Span<'static>>) -> Line<'static> {
    let used: usize = left.iter().chain(&right).map(Span::width).sum();
    let mut spans = left;
    spans.push(Span::raw(" ".repeat(usize::from(width).saturating_sub(used))));
    spans.extend(right);
    Line::from(spans)
}

fn title_line(model: &Model, width: u16) -> Line<'static> {
    let mut left = vec![Span::styled("vireo top", bold())];
    left.push(Span::styled(format!("  {}", model.source), dim()));
    let figures = model.figures();
    let ready = match figures.and_then(|figures| figures.ready) {
        _ if model.lost.is_some() => Span::styled("  no manager", bad()),
        None => Span::raw(""),
        Some(true) => Span::styled("  ready", Style::new().fg(Color::Green)),
        Some(false) => Span::styled("  not all is served", bad()),
    };
    left.push(ready);
    let mut right = Vec::new();
    if model.paused {
        right.push(Span::styled("PAUSED", bold().add_modifier(Modifier::REVERSED)));
        right.push(Span::raw("  "));
    }
    right.push(Span::raw(format!("every {}", interval(model.interval.as_secs_f64()))));
    if let Some(figures) = figures {
        right.push(Span::raw(format!("  {} UTC", clock(figures.time))));
    }
    apart(width, left, right)
}

/// `0.5 s`, `30 s`.
fn interval(seconds: f64) -> String {
    if seconds.fract() == 0.0 { format!("{seconds:.0} s") } else { format!("{seconds:.1} s") }
}

/// The time of day.
fn clock(time: f64) -> String {
    let seconds = time.max(0.0) as u64 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn totals_line(figures: Option<&Figures>, width: u16, glyphs: Glyphs) -> Line<'static> {
    let Some(figures) = figures else { return Line::styled("waiting for the manager", dim()) };
    let Some(total) = figures.total else {
        return Line::styled("waiting for a second reading", dim());
    };
    let busy: f64 = figures.workers.iter().filter_map(|worker| worker.busy_percent).sum();
    let workers = figures.workers.len().max(1) as f64;
    let all_bytes = bytes(Some(total.read_bytes + total.written_bytes));
    let left = vec![
        Span::raw("IOPS "),
        Span::styled(count(Some(total.all())), bold()),
        Span::raw(format!(
            ": {} read, {} write   B/s ",
            count(Some(total.reads)),
            count(Some(total.writes)),
        )),
        Span::styled(all_bytes, bold()),
        Span::raw(format!(
            ": {} in, {} out   busy ",
            bytes(Some(total.written_bytes)),
            bytes(Some(total.read_bytes)),
        )),
        Span::styled(percent(Some(busy / workers)), bold()),
    ];
    let used: usize = left.iter().map(Span::width).sum();
    let room = usize::from(width).saturating_sub(used + 2);
    if room < usize::from(TREND.0) {
        return Line::from(left);
    }
    let bars = figures.trend.bars(figures.time, room.min(TREND.1.into()), None, glyphs);
    apart(width, left, vec![Span::styled(bars, Style::new().fg(Color::Cyan))])
}

fn tabs_line(model: &Model) -> Line<'static> {
    let mut spans = Vec::new();
    for (index, view) in View::ALL.into_iter().enumerate() {
        let number = model.figures().map_or(0, |figures| view.len(figures));
        let text = format!(" {} {} {number} ", index + 1, view.name());
        let style =
            if view == model.view { bold().add_modifier(Modifier::REVERSED) } else { dim() };
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" "));
    }
    if !model.filter.is_empty() || model.typing.is_some() {
        let cursor = if model.typing.is_some() { "_" } else { "" };
        spans.push(Span::styled(format!("/{}{cursor}", model.filter), bold()));
    }
    Line::from(spans)
}

/// Why what is shown is not all: the manager is gone, or something is missing.
fn message(model: &Model) -> Option<Line<'static>> {
    if let Some(lost) = &model.lost {
        return Some(Line::styled(format!("{lost}; trying again"), bad()));
    }
    let failures = &model.figures()?.failures;
    let first = failures.first()?;
    let more = match failures.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(Line::styled(format!("missing: {first}{more}"), bad()))
}

fn foot_line(model: &Model) -> Line<'static> {
    let keys: &[(&str, &str)] = if model.typing.is_some() {
        &[("Enter", "keep"), ("Esc", "give up"), ("a-z", "only rows with this text")]
    } else {
        &[
            ("?", "help"),
            ("q", "quit"),
            ("Tab", "view"),
            ("<>", "sort"),
            ("r", "reverse"),
            ("/", "filter"),
            ("p", "pause"),
            ("+-", "interval"),
        ]
    };
    let mut spans = Vec::new();
    for (key, what) in keys {
        spans.push(Span::styled((*key).to_owned(), bold()));
        spans.push(Span::styled(format!(" {what}  "), dim()));
    }
    Line::from(spans)
}

/// Which columns there is room for, with their widths, and what is left for bars.
struct Fit {
    columns: Vec<(usize, Column)>,
    trend: u16,
}

impl Fit {
    fn of(all: &[Column], names: u16, width: u16) -> Self {
        let name =
            names.clamp(NAME.0, NAME.1).max(all.first().map_or(0, |c| c.title.len() as u16 + 1));
        let mut order: Vec<usize> = (1..all.len()).collect();
        order.sort_by_key(|&index| all[index].rank);
        let mut left = width.saturating_sub(name);
        let mut taken = vec![0];
        for index in order {
            // The first that does not fit ends it: what is less important does not take its place.
            let Some(rest) = left.checked_sub(all[index].width + 1) else { break };
            left = rest;
            taken.push(index);
        }
        taken.sort_unstable();
        let mut columns: Vec<(usize, Column)> =
            taken.into_iter().map(|index| (index, all[index])).collect();
        let more = names.saturating_sub(name).min(left);
        columns[0].1.width = name + more;
        left -= more;
        let trend = if left > TREND.0 { (left - 1).min(TREND.1) } else { 0 };
        Self { columns, trend }
    }
}

fn rows(frame: &mut Frame<'_>, head: Rect, body: Rect, model: &mut Model, glyphs: Glyphs) {
    let rows = model.rows();
    // Rows go, and filters take them.
    model.selected = model.selected.min(rows.len().saturating_sub(1));
    let all = model.view.columns();
    let names = rows.iter().filter_map(|row| row.cells.first()).map(|cell| cell.text.len()).max();
    let fit = Fit::of(&all, names.unwrap_or(0).min(200) as u16, head.width);
    put(frame, head, head_line(model, &fit));
    let Some(figures) = model.figures() else { return };
    if rows.is_empty() {
        let text = match (model.view.len(figures), model.filter.is_empty()) {
            (0, _) if model.view == View::Queues => "no queue has had a command yet",
            (0, _) => "there are none",
            (_, _) => "no row has this text; Esc shows all again",
        };
        return put(frame, body, Line::styled(text, dim()));
    }
    let height = usize::from(body.height);
    // The cursor in view, and no empty lines below the last row.
    let first = model.selected.saturating_sub(height.saturating_sub(1) / 2);
    let first = first.min(rows.len().saturating_sub(height));
    for (line, (index, row)) in rows.iter().enumerate().skip(first).take(height).enumerate() {
        let area = Rect { y: body.y + line as u16, height: 1, ..body };
        let mut shown = row_line(row, &fit, figures.time, glyphs);
        if model.lost.is_some() {
            shown = shown.style(dim());
        }
        if index == model.selected && rows.len() > 1 {
            shown = shown.style(Style::new().add_modifier(Modifier::REVERSED));
        }
        put(frame, area, shown);
    }
}

fn head_line(model: &Model, fit: &Fit) -> Line<'static> {
    let sort = model.sort();
    let mut spans = Vec::new();
    for (index, column) in &fit.columns {
        let text = aligned(column.title, column);
        let style = if *index == sort.column {
            bold().add_modifier(Modifier::UNDERLINED)
        } else {
            bold().fg(Color::Cyan)
        };
        spans.push(Span::styled(text, style));
        // The arrow stands where the gap is.
        let arrow = match (*index == sort.column, sort.descending) {
            (false, _) => " ",
            (true, true) => "v",
            (true, false) => "^",
        };
        spans.push(Span::styled(arrow, bold()));
    }
    if fit.trend > 0 {
        let title: String = model.view.trend().chars().take(fit.trend.into()).collect();
        spans.push(Span::styled(title, bold().fg(Color::Cyan)));
    }
    Line::from(spans)
}

fn row_line(row: &Row, fit: &Fit, now: f64, glyphs: Glyphs) -> Line<'static> {
    let mut spans = Vec::new();
    for (index, column) in &fit.columns {
        let Some(cell) = row.cells.get(*index) else { continue };
        let style = match cell.tone {
            Tone::Plain => Style::new(),
            Tone::Dim => dim(),
            Tone::Good => Style::new().fg(Color::Green),
            Tone::Bad => bad(),
        };
        spans.push(Span::styled(aligned(&cell.text, column), style));
        spans.push(Span::raw(" "));
    }
    if fit.trend > 0 {
        let bars = row.trend.bars(now, fit.trend.into(), row.full, glyphs);
        spans.push(Span::styled(bars, Style::new().fg(Color::Cyan)));
    }
    Line::from(spans)
}

/// Exactly as wide as its column; what is cut off is told by its last character.
fn aligned(text: &str, column: &Column) -> String {
    let width = usize::from(column.width);
    let mut text = text.to_owned();
    if text.chars().count() > width {
        text = text.chars().take(width.saturating_sub(1)).collect();
        text.push('~');
    }
    if column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let keys = [
        ("1 2 3 4, Tab", "workers, controllers, queues, namespaces"),
        ("< >", "sort by the column before, after"),
        ("r", "sort the other way round"),
        ("/", "only rows with a text; Esc shows all again"),
        ("p", "nothing moves until p again"),
        ("+ -", "longer, shorter interval"),
        ("Up Down", "move the cursor; PgUp PgDn Home End"),
        ("q", "quit"),
    ];
    let mut lines: Vec<Line<'static>> = keys
        .iter()
        .map(|(key, what)| {
            Line::from(vec![Span::styled(format!(" {key:<13}"), bold()), Span::raw(*what)])
        })
        .collect();
    let (shortest, longest) = (INTERVAL_RANGE.0.as_secs_f64(), INTERVAL_RANGE.1.as_secs_f64());
    let notes = [
        format!(" Latencies: sampled commands of the last {WINDOW_SECONDS:.0} s, fetch to"),
        " completion; a queue's are of all queues that its".to_owned(),
        " controller has on its worker. DEPTH: rate times mean".to_owned(),
        " latency. Q: queues used, of those allowed. THR/s:".to_owned(),
        " commands that had to wait for a limit; WAIT: how long,".to_owned(),
        " on average. B/s: powers of 1024. Bars: the last minute.".to_owned(),
        format!(" Intervals: {} to {}.", interval(shortest), interval(longest)),
    ];
    // What there is no room for are the notes.
    let room = usize::from(area.height).saturating_sub(lines.len() + 2);
    lines.extend(notes.into_iter().take(room).map(|note| Line::styled(note, dim())));
    let (width, height) = (59.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" keys ");
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

#[cfg(test)]
mod tests;
