//! Notifications of systemd's protocol (sd_notify(3)): lines of `KEY=VALUE` in one datagram, descriptors beside it.

/// What a descriptor is called in the store if nobody says (sd_pid_notify_with_fds(3)).
const NO_NAME: &str = "stored";

/// What a service told its keeper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// READY=1: the service serves.
    pub ready: bool,
    /// STOPPING=1: it has begun to stop.
    pub stopping: bool,
    /// WATCHDOG=1: it lives.
    pub watchdog: bool,
    /// STATUS=...: a line for a person.
    pub status: Option<String>,
    /// What is to be done with the descriptors, or with those in the store.
    pub store: StoreRequest,
}

/// What a notification wants of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreRequest {
    /// Nothing.
    #[default]
    Nothing,
    /// FDSTORE=1: keep the descriptors.
    Keep {
        /// FDNAME=...
        name: String,
        /// Drop one when it hangs up; FDPOLL=0 says not to.
        poll: bool,
    },
    /// FDSTOREREMOVE=1: drop those of this name.
    Remove {
        /// FDNAME=...
        name: String,
    },
    /// BARRIER=1: close the one descriptor once everything before it is done.
    Barrier,
}

impl Notification {
    /// Reads a datagram. Lines that are not understood are skipped, as the protocol asks for.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let value =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let flag = |key| value(key) == Some("1");
        let name = || {
            let name = value("FDNAME").filter(|name| is_name(name));
            name.unwrap_or(NO_NAME).to_owned()
        };
        let store = if flag("BARRIER") {
            StoreRequest::Barrier
        } else if flag("FDSTOREREMOVE") {
            // Without a name there is nothing that could be meant.
            match value("FDNAME") {
                Some(name) => StoreRequest::Remove { name: name.to_owned() },
                None => StoreRequest::Nothing,
            }
        } else if flag("FDSTORE") {
            StoreRequest::Keep { name: name(), poll: value("FDPOLL") != Some("0") }
        } else {
            StoreRequest::Nothing
        };
        Self {
            ready: flag("READY"),
            stopping: flag("STOPPING"),
            watchdog: flag("WATCHDOG"),
            status: value("STATUS").map(str::to_owned),
            store,
        }
    }
}

/// What the protocol takes as a name: ASCII without control characters and colons, at most 255 bytes.
pub(super) fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.bytes().all(|b| (0x20..0x7F).contains(&b) && b != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_and_unknown_ones_skipped() {
        let parsed = Notification::parse(b"READY=1\nSTATUS=serves 3 endpoints\nERRNO=2\nX\n");
        let status = Some("serves 3 endpoints".to_owned());
        assert_eq!(parsed, Notification { ready: true, status, ..Default::default() });
        assert_eq!(Notification::parse(b"READY=0\n\xFF\xFE=1"), Notification::default());
        assert!(Notification::parse(b"WATCHDOG=1").watchdog);
        assert!(Notification::parse(b"STOPPING=1").stopping);
    }

    #[test]
    fn requests_to_the_store_are_told_apart() {
        let store = |text: &str| Notification::parse(text.as_bytes()).store;
        let keep = |name: &str, poll| StoreRequest::Keep { name: name.into(), poll };
        assert_eq!(store("FDSTORE=1\nFDNAME=ctrl.1f\nFDPOLL=0\n"), keep("ctrl.1f", false));
        assert_eq!(store("FDSTORE=1"), keep("stored", true));
        assert_eq!(store("FDSTORE=1\nFDNAME=a:b"), keep("stored", true));
        assert_eq!(store("FDNAME=x"), StoreRequest::Nothing);
        assert_eq!(store("FDSTOREREMOVE=1\nFDNAME=x"), StoreRequest::Remove { name: "x".into() });
        assert_eq!(store("FDSTOREREMOVE=1"), StoreRequest::Nothing);
        assert_eq!(store("BARRIER=1"), StoreRequest::Barrier);
    }
}
