//! Which submission queue is served next: round robin with a bounded burst. NVMe Base 2.0c 3.4.4.1.

/// Commands fetched from one queue before the next one's turn, whatever the host asks for: no queue stalls others.
pub const MAX_BURST: u32 = 32;

/// The burst for Arbitration Burst (AB) of feature 01h as a number of commands: the host's limit, or ours where it has
/// none (0) or a greater one.
pub fn burst(host: u32) -> u32 {
    match host {
        0 => MAX_BURST,
        limit => limit.min(MAX_BURST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_bounded_whatever_the_host_says() {
        assert_eq!(burst(0), MAX_BURST);
        assert_eq!(burst(1), 1);
        assert_eq!(burst(u32::MAX), MAX_BURST);
    }
}
