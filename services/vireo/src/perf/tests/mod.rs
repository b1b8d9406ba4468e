//! Whole runs against targets in this process.

use super::{PerfArguments, run};
use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    perf: PerfArguments,
}

fn perf(arguments: &[&str]) -> ExitCode {
    let words = ["perf"].iter().chain(arguments);
    run(&CommandLine::try_parse_from(words).expect("options").perf)
}

#[test]
fn the_generator_runs_against_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (histogram, timeline) = (directory.path().join("h.svg"), directory.path().join("t.svg"));
    let pictures =
        ["--histogram", histogram.to_str().unwrap(), "--timeline", timeline.to_str().unwrap()];
    let load = ["--self", "--time", "1s", "--depth", "8", "-o", "json"];
    assert_eq!(perf(&[&load[..], &pictures[..]].concat()), ExitCode::SUCCESS);
    for picture in [histogram, timeline] {
        let text = std::fs::read_to_string(picture).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{text:.80}");
    }
}

#[test]
fn options_that_do_not_fit_start_nothing() {
    for wrong in [&["--self", "--block-size", "513"][..], &["vfio-user:/nowhere", "--depth", "0"]] {
        assert_eq!(perf(wrong), ExitCode::from(2), "{wrong:?}");
    }
}

#[test]
fn a_target_that_is_not_there_is_a_failure() {
    assert_eq!(perf(&["vfio-user:/nowhere/at/all", "--time", "1s"]), ExitCode::from(1));
}
