//! Where in which trace something is: W3C Trace Context.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Trace and span. Ids are never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// The text is no traceparent of a version that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoContext;

impl fmt::Display for NoContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a W3C traceparent")
    }
}

impl std::error::Error for NoContext {}

impl Context {
    /// Of these ids; `None` if one is 0.
    pub fn new(trace: u128, span: u64) -> Option<Self> {
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled: true })
    }

    /// Of a trace id, high half first, and a span id; `None` if one is 0.
    pub fn from_words([high, low, span]: [u64; 3]) -> Option<Self> {
        Self::new(u128::from(high) << 64 | u128::from(low), span)
    }

    /// The trace id, high half first, and the span id.
    pub fn to_words(self) -> [u64; 3] {
        [(self.trace >> 64) as u64, self.trace as u64, self.span]
    }

    /// The first span of a new trace.
    pub fn new_trace() -> Self {
        let trace = u128::from(random_id()) << 64 | u128::from(random_id());
        Self { trace, span: random_id(), sampled: true }
    }

    /// Another span of this trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: random_id(), ..self }
    }

    /// The trace.
    pub fn trace_id(self) -> u128 {
        self.trace
    }

    /// The span.
    pub fn span_id(self) -> u64 {
        self.span
    }

    /// Whether who began the trace wants it recorded.
    pub fn is_sampled(self) -> bool {
        self.sampled
    }
}

/// As a traceparent header.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, sampled } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(*sampled))
    }
}

impl FromStr for Context {
    type Err = NoContext;

    /// From a traceparent header, of which a later version may say more.
    fn from_str(text: &str) -> Result<Self, NoContext> {
        let mut parts = text.split('-');
        let mut next = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(NoContext)?;
            let lower = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if lower { Ok(part) } else { Err(NoContext) }
        };
        let version = next(2)?;
        let trace = u128::from_str_radix(next(32)?, 16).map_err(|_| NoContext)?;
        let span = u64::from_str_radix(next(16)?, 16).map_err(|_| NoContext)?;
        let flags = u8::from_str_radix(next(2)?, 16).map_err(|_| NoContext)?;
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(NoContext);
        }
        let context = Self::new(trace, span).ok_or(NoContext)?;
        Ok(Self { sampled: flags & 1 != 0, ..context })
    }
}

/// A number that no other process has, most likely; never 0. Not for secrets.
pub(crate) fn random_id() -> u64 {
    static SEED: OnceLock<RandomState> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // The standard library seeds it from the kernel's random numbers, once per process.
    let seed = SEED.get_or_init(RandomState::new);
    loop {
        // Relaxed: only uniqueness matters.
        let id = seed.hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
        if id != 0 {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_goes_through_a_header() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: Context = text.parse().unwrap();
        assert_eq!(context.trace_id(), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(context.span_id(), 0xb7ad_6b71_6920_3331);
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), text);
        let unsampled: Context = text.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.is_sampled() && !unsampled.child().is_sampled());
        assert_eq!(Context::from_words(context.to_words()), Some(context));
        assert_eq!(Context::from_words([0; 3]), None);
        let later = format!("cc-{}-what-ever", &text[3..]);
        assert_eq!(later.parse(), Ok(context));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333é-01",
        ] {
            assert_eq!(text.parse::<Context>(), Err(NoContext), "{text}");
        }
    }

    #[test]
    fn ids_differ() {
        let context = Context::new_trace();
        let other = Context::new_trace();
        assert!(context.trace_id() != other.trace_id() && context.span_id() != other.span_id());
        let child = context.child();
        assert!(child.trace_id() == context.trace_id() && child.span_id() != context.span_id());
    }
}
