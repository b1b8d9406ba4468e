//! Times and durations between protobuf and Rust.

use prost_types::{Duration as PbDuration, Timestamp};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time in milliseconds since 1970.
pub(super) fn from_ms(ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: (ms % 1000) as i32 * 1_000_000 }
}

/// A time; before 1970 is 1970.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: since.subsec_nanos() as i32 }
}

/// A duration.
pub(super) fn duration(duration: Duration) -> PbDuration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    PbDuration { seconds, nanos: duration.subsec_nanos() as i32 }
}

/// A duration that is not negative and has its parts in range; `None` otherwise.
pub(super) fn parse(duration: &PbDuration) -> Option<Duration> {
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for value in [Duration::ZERO, Duration::new(3, 999_999_999), Duration::from_micros(500)] {
            assert_eq!(parse(&duration(value)), Some(value));
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, i32::MAX)] {
            assert_eq!(parse(&PbDuration { seconds, nanos }), None);
        }
        assert_eq!(from_ms(1_500), Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), Timestamp::default());
    }
}
