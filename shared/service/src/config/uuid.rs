//! UUIDs, by which hosts know namespaces.

use ::uuid::{Builder, Uuid};
use std::fs::File;
use std::io::{self, Read};

/// A random UUID (version 4, RFC 9562 5.4).
///
/// # Errors
/// The kernel's, if it gives no random bytes.
pub fn random_uuid() -> io::Result<Uuid> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Builder::from_random_bytes(bytes).into_uuid())
}

/// A UUID in the one way in which it is written here, with hyphens and small letters (RFC 9562 4). `None` for others, and for
/// the one of zeroes, by which nothing is known.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    (!uuid.is_nil() && uuid.to_string() == text).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_one_is_of_version_4_and_reads_back() {
        let (one, other) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(one, other);
        assert_eq!((one.get_version_num(), parse_uuid(&one.to_string())), (4, Some(one)));
    }

    #[test]
    fn a_uuid_is_written_in_one_way() {
        let text = "123e4567-e89b-42d3-a456-426614174000";
        assert_eq!(parse_uuid(text).unwrap().to_string(), text);
        let others = [
            &text.to_uppercase(),
            &text.replace('-', ""),
            &format!("{{{text}}}"),
            &format!("urn:uuid:{text}"),
            &text[1..],
            "00000000-0000-0000-0000-000000000000",
            "",
        ];
        for other in others {
            assert_eq!(parse_uuid(other), None, "{other}");
        }
    }
}
