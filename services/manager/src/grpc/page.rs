//! Lists in pages.

use super::error;
use tonic::Status;

/// Items of a page whose caller says nothing.
const DEFAULT: usize = 100;
/// Most items of a page.
const MAX: usize = 1000;

/// The part of `items` that a caller asks for, with the token for the next. A page begins after the last item of the one
/// before, whether or not that is still there.
pub(crate) fn page<T>(
    mut items: Vec<(String, T)>,
    size: i32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let size = match usize::try_from(size) {
        Ok(0) => DEFAULT,
        Ok(size) => size.min(MAX),
        Err(_) => return Err(error::invalid("page_size", "is negative; write 0 to 1000")),
    };
    items.sort_by(|a, b| a.0.cmp(&b.0));
    if !token.is_empty() {
        let wrong = || error::invalid("page_token", "is none that an answer had");
        let last = decode(token).ok_or_else(wrong)?;
        items.retain(|(key, _)| *key > last);
    }
    let more = items.len() > size;
    items.truncate(size);
    let token = match items.last() {
        Some((key, _)) if more => encode(key),
        _ => String::new(),
    };
    Ok((items.into_iter().map(|(_, item)| item).collect(), token))
}

fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(token: &str) -> Option<String> {
    if !token.len().is_multiple_of(2) || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(token.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..token.len()).step_by(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize) -> Vec<(String, usize)> {
        (0..count).rev().map(|number| (format!("{number:05}"), number)).collect()
    }

    #[test]
    fn pages_together_are_the_list() {
        for size in [1, 3, 99, 100, 101] {
            let (mut all, mut token) = (Vec::new(), String::new());
            loop {
                let (some, next) = page(items(100), size, &token).unwrap();
                assert!(!some.is_empty() && some.len() <= size as usize);
                all.extend(some);
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(all, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_goes_on_where_its_predecessor_ended_though_that_is_gone() {
        let (_, token) = page(items(10), 5, "").unwrap();
        let without = items(10).into_iter().filter(|(_, number)| *number != 4).collect();
        assert_eq!(page(without, 5, &token).unwrap().0, [5, 6, 7, 8, 9]);
    }

    #[test]
    fn sizes_are_bounded_and_tokens_are_ours() {
        assert_eq!(page(items(2000), 0, "").unwrap().0.len(), DEFAULT);
        assert_eq!(page(items(2000), i32::MAX, "").unwrap().0.len(), MAX);
        assert!(page(items(1), -1, "").is_err());
        for wrong in ["x", "0", "zz", "ff", "+1", "00é"] {
            assert!(page(items(1), 0, wrong).is_err(), "{wrong}");
        }
        assert_eq!(page(items(0), 0, "").unwrap(), (Vec::new(), String::new()));
    }
}
