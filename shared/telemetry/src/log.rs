//! The log on standard error: for a person on a terminal, lean for the journal, JSON everywhere else.

use std::io::IsTerminal;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Which events are logged, in the syntax of `tracing_subscriber::EnvFilter`; `info` if not set.
pub const FILTER_VARIABLE: &str = "VIREO_LOG";
/// `human`, `journal` or `json`; otherwise chosen by where standard error goes.
pub const FORMAT_VARIABLE: &str = "VIREO_LOG_FORMAT";

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// With time and colours.
    Human,
    /// Without time and colours, which the journal adds.
    Journal,
    /// One JSON object a line.
    Json,
}

/// Starts the log of this process. A second call, or a filter that is not understood, is told on standard error; the
/// process goes on.
pub fn start() {
    let (filter, mistake) = filter(std::env::var(FILTER_VARIABLE).ok());
    let subscriber = subscriber(format(), filter, std::io::stderr);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        eprintln!("the log was started before");
    }
    if let Some(mistake) = mistake {
        tracing::warn!(variable = FILTER_VARIABLE, mistake, "filter not understood, using info");
    }
}

fn filter(text: Option<String>) -> (EnvFilter, Option<String>) {
    match text.filter(|text| !text.is_empty()).map(|text| text.parse::<EnvFilter>()) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new("info"), Some(error.to_string())),
        None => (EnvFilter::new("info"), None),
    }
}

fn format() -> Format {
    match std::env::var(FORMAT_VARIABLE).as_deref() {
        Ok("human") => Format::Human,
        Ok("journal") => Format::Journal,
        Ok("json") => Format::Json,
        _ if std::io::stderr().is_terminal() => Format::Human,
        _ if std::env::var_os("JOURNAL_STREAM").is_some() => Format::Journal,
        _ => Format::Json,
    }
}

fn subscriber<W>(
    format: Format,
    filter: EnvFilter,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync + 'static>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Where standard error is closed, a remark there on a line that was not written would be a panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .log_internal_errors(false);
    match format {
        Format::Human => Box::new(builder.with_target(false).compact().finish()),
        Format::Journal => {
            Box::new(builder.without_time().with_ansi(false).with_target(false).compact().finish())
        }
        Format::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, text: Option<&str>) -> String {
        let page = Page::default();
        let writer = page.clone();
        let (filter, _) = filter(text.map(str::to_owned));
        let subscriber = subscriber(format, filter, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(endpoint = "vm0", "connected");
            tracing::debug!("detail");
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_has_the_fields_of_the_event() {
        let line = written(Format::Json, None);
        assert!(line.contains(r#""message":"connected","endpoint":"vm0""#), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn the_journal_gets_neither_time_nor_colour() {
        let line = written(Format::Journal, None);
        assert_eq!(line, " INFO connected endpoint=\"vm0\"\n");
    }

    #[test]
    fn the_filter_says_what_is_logged_and_a_bad_one_is_told() {
        assert_eq!(written(Format::Journal, Some("debug")).lines().count(), 2);
        assert_eq!(written(Format::Journal, Some("off")), "");
        assert!(filter(Some("a=b=c".to_owned())).1.is_some());
    }
}
