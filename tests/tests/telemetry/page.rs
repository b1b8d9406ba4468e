//! The metrics of a target as a scraper gets them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vireo_tests::target::Target;
use vireo_tests::wait::{PATIENCE, until};

/// What a scraper asks for that knows OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";
/// What one asks for that knows the older format alone.
pub const PLAIN: &str = "text/plain";

/// One scrape.
pub struct Page(pub String);

/// Scrapes the default socket until every process has answered in time: one that stalls with its machine is left out.
#[track_caller]
pub fn scrape(target: &Target, accept: &str) -> Page {
    let mut page = scrape_once(target, accept);
    until("every process answers", || {
        let all = page.samples("vireo_process_up", &[]).all(|up| up == 1.0);
        if !all {
            page = scrape_once(target, accept);
        }
        all
    });
    page
}

#[track_caller]
fn scrape_once(target: &Target, accept: &str) -> Page {
    let mut stream = UnixStream::connect(target.site().run_dir().join("metrics.sock"))
        .expect("the metrics' socket is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a time-out");
    stream.set_write_timeout(Some(PATIENCE)).expect("set a time-out");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: vireo\r\nAccept: {accept}\r\n\r\n")
        .expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    Page(body.to_owned())
}

impl Page {
    /// The sum of the samples of this name whose labels contain all of these.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).sum()
    }

    /// Whether there is such a sample.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.samples(name, labels).next().is_some()
    }

    fn samples(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let wanted: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(move |line| {
            // An exemplar stands behind the value.
            let line = line.split(" # ").next().unwrap_or(line);
            let (series, value) = line.rsplit_once(' ')?;
            let (found, braces) = series.split_once('{').unwrap_or((series, ""));
            let all = wanted.iter().all(|label| braces.contains(label.as_str()));
            (found == name && all).then(|| value.parse().expect("a number"))
        })
    }
}
