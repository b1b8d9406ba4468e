//! Events in the journal's own protocol (systemd-journald, "Native Journal Protocol"): a datagram of fields for each.
//!
//! Used where standard error is the journal's, as JOURNAL_STREAM says. What the journal does not take is written to
//! standard error, which leads there as well.

use crate::spans;
use nix::sys::stat::fstat;
use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Where journald takes datagrams.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Says which file the journal's stream is: device and inode.
const STREAM: &str = "JOURNAL_STREAM";

/// The way to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    identifier: String,
}

impl Journal {
    /// The journal, if standard error is its stream.
    pub(super) fn of_standard_error() -> Option<Self> {
        let stream = std::env::var(STREAM).ok()?;
        let found = fstat(std::io::stderr()).ok()?;
        if !is_stream(&stream, found.st_dev, found.st_ino) {
            return None;
        }
        let program = std::env::args_os().next()?;
        let identifier = Path::new(&program).file_name()?.to_string_lossy().into_owned();
        Self::at(Path::new(SOCKET), identifier).ok()
    }

    fn at(socket: &Path, identifier: String) -> std::io::Result<Self> {
        let journal = UnixDatagram::unbound()?;
        journal.connect(socket)?;
        // A journal that hangs holds nobody up.
        journal.set_nonblocking(true)?;
        Ok(Self { socket: journal, identifier })
    }

    fn fields(&self, event: &Event<'_>) -> (Vec<u8>, String) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = format!("{}{}", fields.message, fields.rest);
        let mut bytes = Vec::with_capacity(512);
        put(&mut bytes, "PRIORITY", priority(*metadata.level()));
        put(&mut bytes, "SYSLOG_IDENTIFIER", &self.identifier);
        put(&mut bytes, "MESSAGE", &line);
        put(&mut bytes, "VIREO_TARGET", metadata.target());
        if let (Some(file), Some(number)) = (metadata.file(), metadata.line()) {
            put(&mut bytes, "CODE_FILE", file);
            put(&mut bytes, "CODE_LINE", &number.to_string());
        }
        if let Some(at) = spans::current() {
            put(&mut bytes, "TRACE_ID", &format!("{:032x}", at.trace_id()));
            put(&mut bytes, "SPAN_ID", &format!("{:016x}", at.span_id()));
        }
        for (name, value) in &fields.named {
            put(&mut bytes, name, value);
        }
        (bytes, line)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (bytes, line) = self.fields(event);
        if self.socket.send(&bytes).is_err() {
            // Longer than a datagram, or the journal is away. If that fails, too, nobody is left to be told.
            writeln!(std::io::stderr(), "{line}").ok();
        }
    }
}

/// Whether `stream` names this file.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

/// Priorities of syslog.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

/// One field. A value with a line feed is preceded by its length.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

/// An event's fields: the message, the others behind it in one line, and each by its name.
#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
    named: Vec<(String, String)>,
}

impl Fields {
    fn add(&mut self, field: &Field, plain: String, shown: &str) {
        if field.name() == "message" {
            self.message = plain;
            return;
        }
        self.rest.push_str(&format!(" {}={shown}", field.name()));
        // The journal takes capital letters, digits and underscores; a prefix keeps clear of its own names.
        let name: String = field
            .name()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        self.named.push((format!("VIREO_{name}"), plain));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.add(field, text.clone(), &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned(), &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[tokio::test]
    async fn an_event_is_a_datagram_of_fields() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let journal = Journal::at(&path, "vireo-test".to_owned()).unwrap();
        let subscriber = tracing_subscriber::registry().with(journal);
        let context = spans::Context::new(0xAB, 0xCD);
        let log = async {
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(endpoint = "vm0", number = 7, "lost\nand found");
            });
        };
        spans::within(context, log).await;
        let mut bytes = [0; 4096];
        let length = receiver.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..length]);
        let message = "lost\nand found endpoint=\"vm0\" number=7";
        let mut framed = b"MESSAGE\n".to_vec();
        framed.extend_from_slice(&(message.len() as u64).to_le_bytes());
        framed.extend_from_slice(message.as_bytes());
        let framed = String::from_utf8_lossy(&framed).into_owned();
        for field in [
            "PRIORITY=4\n",
            "SYSLOG_IDENTIFIER=vireo-test\n",
            &framed,
            "TRACE_ID=000000000000000000000000000000ab\n",
            "SPAN_ID=00000000000000cd\n",
            "VIREO_ENDPOINT=vm0\n",
            "VIREO_NUMBER=7\n",
        ] {
            assert!(text.contains(field), "{field:?} in {text:?}");
        }
    }

    #[test]
    fn only_the_journal_s_own_stream_is_taken_for_it() {
        assert!(is_stream("8:1234", 8, 1234));
        assert!(!is_stream("8:1234", 8, 1235) && !is_stream("8", 8, 8) && !is_stream("", 0, 0));
    }
}
