//! Reaching a controller in bounded time, and one line for each way that fails.

use std::io::ErrorKind;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nvme_driver::transport::TransportError;
use nvme_driver::{ConnectError, Error, Options};

/// How long a target may take to be reached and described, if nothing else is said: a person sees an error within five
/// seconds, whatever the target does.
pub const DEFAULT_TIMEOUT: &str = "4s";
/// Longest wait for a controller to be shut down.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Exit status: the options do not fit, nothing was started.
pub const EXIT_USAGE: u8 = 2;
/// Exit status: it could not be done.
pub const EXIT_FAILURE: u8 = 1;

/// Why there is no result. One line, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The line.
    pub text: String,
    /// Whether the options are to blame: exit status 2 instead of 1.
    pub usage: bool,
}

impl Failure {
    /// Something outside failed.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), usage: false }
    }

    /// The options do not fit.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), usage: true }
    }

    /// The exit status that goes with it.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        if self.usage { EXIT_USAGE } else { EXIT_FAILURE }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Start { address, source } => Self::new(format!(
                "controller at {address} did not come up: {}",
                explain(&source).text
            )),
            ConnectError::Address(error) => Self::usage(error.to_string()),
            ConnectError::Transport {
                source: TransportError::System { ref source, .. }, ..
            } if source.kind() == ErrorKind::InvalidFilename => {
                Self::new(format!("{error}; a socket's path has at most 107 bytes"))
            }
            ConnectError::Transport { ref address, .. } => Self::new(match address.as_str() {
                address if address.starts_with("pcie:") => format!("{error}; `dmesg` may say more"),
                _ => format!("{error}; see its target's log, then restart it"),
            }),
            error => Self::new(error.to_string()),
        }
    }
}

/// Settings of the driver for a target that may take `timeout` in all: single answers take less, so that what is told is
/// which of them did not come.
#[must_use]
pub fn driver_options(timeout: Duration) -> Options {
    let answer = timeout.mul_f64(0.75);
    Options { connect_timeout: answer, admin_timeout: answer, ..Options::default() }
}

/// An error of the driver in one line, with what to do about it.
#[must_use]
pub fn explain(error: &Error) -> Failure {
    let text = one_line(error);
    Failure::new(match error {
        Error::NoNamespace { nsid, active } => {
            format!(
                "namespace {} is not there; active: {active}; choose one with --namespace",
                nsid.0
            )
        }
        Error::Gone => format!("{text}: its target ended; see its log, then start it again"),
        Error::TimedOut { .. } => format!("{text}: it hangs; see its log, then restart it"),
        Error::Transport(_) | Error::Fatal | Error::Protocol { .. } => {
            format!("{text}; see its target's log, then restart it")
        }
        Error::Command { .. } => format!("{text}; see its target's log"),
        Error::Unsupported { found, .. } if found.starts_with("namespace") => {
            format!("{text}: format it so, or choose another with --namespace")
        }
        _ => text,
    })
}

/// An error with its causes.
#[must_use]
pub fn one_line(error: &dyn std::error::Error) -> String {
    nvme_driver::chain(error).replace('\n', " ")
}

/// Does what may hang, and gives up waiting after `timeout`: what still runs then ends with the process. `option` is what a
/// person sets the limit with.
///
/// # Errors
/// That of `act`, or a line that says that it took too long.
pub fn within<T: Send + 'static>(
    address: &str,
    timeout: Duration,
    option: &str,
    act: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = sync_channel(1);
    let thread = std::thread::Builder::new().name("reach".into()).spawn(move || {
        // Nobody listens any more if it took too long.
        sender.send(act()).ok();
    });
    thread.map_err(|error| Failure::new(format!("start a thread: {error}")))?;
    match receiver.recv_timeout(timeout) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Failure::new(format!(
            "{address} does not answer within {timeout:?}: it hangs, or is slow; restart it, or say {option} {:?}",
            timeout * 8
        ))),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Failure::new(format!("asking {address} failed; this is a mistake in vireo")))
        }
    }
}

/// Lets go of a controller, which shuts it down. One that hangs is waited for no longer than a person would: what is left
/// of it ends with the process.
pub fn close<T: Send + 'static>(controller: T) {
    let thread = std::thread::Builder::new().name("close".into()).spawn(move || drop(controller));
    let started = Instant::now();
    // Without a thread it was dropped here.
    while thread.as_ref().is_ok_and(|thread| !thread.is_finished()) && started.elapsed() < CLOSE_MAX
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_given_up_with_a_remedy() {
        let started = Instant::now();
        let hang = || -> Result<(), Failure> {
            std::thread::sleep(Duration::from_secs(600));
            Ok(())
        };
        let timeout = Duration::from_millis(50);
        let failure = within("vfio-user:/x", timeout, "--timeout", hang).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(failure.text.contains("vfio-user:/x") && failure.text.contains("--timeout 400ms"));
    }

    #[test]
    fn what_ends_in_time_is_handed_on() {
        let timeout = Duration::from_secs(60);
        assert_eq!(within("x", timeout, "--timeout", || Ok(7)), Ok(7));
        let failed = within("x", timeout, "--timeout", || Err::<(), _>(Failure::usage("no")));
        assert_eq!(failed, Err(Failure::usage("no")));
        let dead = within("x", timeout, "--timeout", || -> Result<(), Failure> { panic!("dead") });
        assert!(dead.is_err());
    }

    #[test]
    fn a_namespace_is_named_as_it_is_typed() {
        let error = Error::NoNamespace { nsid: nvme_spec::Nsid(17), active: "1, 2".to_owned() };
        let text = explain(&error).text;
        assert_eq!(text, "namespace 17 is not there; active: 1, 2; choose one with --namespace");
    }
}
