//! The log on standard error: for a person on a terminal, lean where something adds the time, JSON everywhere else; or
//! in the journal itself, with its fields. What happens within a trace carries its ids.

mod journal;

use crate::spans;
use std::fmt;
use std::io::IsTerminal;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

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
    let journal = if format_is_chosen() { None } else { journal::Journal::of_standard_error() };
    let subscriber: Box<dyn Subscriber + Send + Sync> = match journal {
        Some(journal) => Box::new(tracing_subscriber::registry().with(filter).with(journal)),
        None => subscriber(format(), filter, std::io::stderr),
    };
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

/// Whether a person said which format it is to be.
fn format_is_chosen() -> bool {
    std::env::var(FORMAT_VARIABLE).is_ok_and(|name| matches!(&*name, "human" | "journal" | "json"))
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
            let builder = builder.without_time().with_ansi(false).with_target(false).compact();
            Box::new(builder.map_event_format(|inner| Traced { inner, json: false }).finish())
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true);
            Box::new(builder.map_event_format(|inner| Traced { inner, json: true }).finish())
        }
    }
}

/// A format with the ids of the trace that an event is in.
struct Traced<F> {
    inner: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(at) = spans::current() else {
            return self.inner.format_event(context, writer, event);
        };
        let (trace, span) = (at.trace_id(), at.span_id());
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{').filter(|_| self.json) {
            Some(rest) => {
                write!(writer, "{{\"trace_id\":\"{trace:032x}\",\"span_id\":\"{span:016x}\",{rest}")
            }
            None => writeln!(writer, "{} trace_id={trace:032x}", line.trim_end_matches('\n')),
        }
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

    #[tokio::test]
    async fn what_happens_in_a_trace_carries_its_ids() {
        let context = spans::Context::new(0xAB, 0xCD).unwrap();
        let json = spans::within(Some(context), async { written(Format::Json, None) }).await;
        let ids = r#"{"trace_id":"000000000000000000000000000000ab","span_id":"00000000000000cd","#;
        assert!(json.starts_with(ids) && json.ends_with("}\n"), "{json}");
        let line = spans::within(Some(context), async { written(Format::Journal, None) }).await;
        let id = " trace_id=000000000000000000000000000000ab\n";
        assert_eq!(line, format!(" INFO connected endpoint=\"vm0\"{id}"));
    }

    #[test]
    fn the_filter_says_what_is_logged_and_a_bad_one_is_told() {
        assert_eq!(written(Format::Journal, Some("debug")).lines().count(), 2);
        assert_eq!(written(Format::Journal, Some("off")), "");
        assert!(filter(Some("a=b=c".to_owned())).1.is_some());
    }
}
