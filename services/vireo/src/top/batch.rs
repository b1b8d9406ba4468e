//! One reading for programs and for paper: `--once`, `-o json`.

use super::figures::Figures;
use super::history::History;
use super::source::{Source, Update};
use super::table::View;
use crate::admin::Format;
use crate::text::print;
use anyhow::{Context, bail};
use comfy_table::{CellAlignment, Table, presets};

/// Prints the figures of the first interval.
///
/// # Errors
/// The manager cannot be reached; why, in one line.
pub fn run(source: &mut Source, format: Format) -> anyhow::Result<()> {
    let mut history = History::default();
    let figures = loop {
        match source.wait()? {
            Update::Sample(sample) => history.sample(*sample),
            Update::Inventory(inventory) => history.inventory(*inventory),
            Update::Lost(line) => bail!(line),
            Update::Stop => bail!("was told to end"),
        }
        let figures = history.figures().filter(is_whole);
        if let Some(figures) = figures {
            break figures;
        }
    };
    let text = match format {
        Format::Table => tables(&figures),
        Format::Json => {
            let text = serde_json::to_string_pretty(&figures).context("write json")?;
            format!("{text}\n")
        }
        Format::Yaml => serde_yaml_ng::to_string(&figures).context("write yaml")?,
    };
    print(&text).context("write to standard output")
}

/// There are rates, and what there is is known.
fn is_whole(figures: &Figures) -> bool {
    figures.seconds.is_some() && figures.ready.is_some()
}

/// All views, one below the other.
fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    for view in View::ALL {
        let rows = view.rows(figures);
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(view.columns().iter().map(|column| column.title));
        for row in &rows {
            table.add_row(row.cells.iter().map(|cell| cell.text.as_str()));
        }
        for (index, column) in view.columns().iter().enumerate() {
            if let Some(shown) = table.column_mut(index).filter(|_| column.right) {
                shown.set_cell_alignment(CellAlignment::Right);
            }
        }
        if !rows.is_empty() {
            let lines = table.to_string();
            text.extend(lines.lines().map(|line| format!("{}\n", line.trim_end())));
            text.push('\n');
        }
    }
    for failure in &figures.failures {
        text.push_str(&format!("missing: {failure}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::example;

    #[test]
    fn every_view_is_a_table_and_json_has_every_figure() {
        let mut figures = example::figures();
        assert!(is_whole(&figures));
        figures.failures.push("worker w9: is not there".into());
        let text = tables(&figures);
        for part in
            ["WORKER", "CONTROLLER", "QUEUE", "NAMESPACE", "SUBSYSTEM", "43%", "12.3k", "w9"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["controllers"][0]["rates"]["reads"], 12_300.0);
        assert_eq!(json["controllers"][0]["latency"]["p99_ns"], 412_000.0);
        assert_eq!(json["controllers"][0]["rates"]["throttled"], 250.0);
        assert_eq!(json["workers"][1]["doing"], "asleep");
        assert_eq!(json["workers"][0]["latency"]["p50_ns"], 76_000.0);
        assert_eq!(json["queues"][0]["shared_latency"]["p50_ns"], 76_000.0);
        assert_eq!(json["queues"][0]["id"], 1);
        assert_eq!(json["namespaces"][0]["volume"], "mem0");
    }

    #[test]
    fn one_reading_is_not_enough() {
        assert!(!is_whole(&Figures::default()));
    }
}
