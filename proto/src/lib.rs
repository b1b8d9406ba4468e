//! Protobuf messages spoken between Vireo's processes.
//!
//! [`handoff`] holds the generated types of `vireo/internal/v1/*.proto`, where each message's meaning and its
//! descriptors are told. Here beside them: bytes to messages and back, ids, and a [`Failure`] that is an error in Rust
//! and an `Error` on the wire.

#![forbid(unsafe_code)]

use prost::Message;

/// Types of `vireo/internal/v1/*.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod handoff {
    include!(concat!(env!("OUT_DIR"), "/vireo.internal.v1.rs"));
}

mod failure;

pub use failure::Failure;
pub use handoff::ErrorCode;

/// The bytes are no message of the wanted type.
#[derive(Debug, thiserror::Error)]
#[error("malformed protobuf message of {length} bytes")]
pub struct Malformed {
    length: usize,
    #[source]
    source: prost::DecodeError,
}

/// A message's bytes.
pub fn encode(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// A message from its bytes. Unknown fields are skipped, so that a newer peer is understood.
///
/// # Errors
/// [`Malformed`] if the bytes are no such message.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Malformed> {
    M::decode(bytes).map_err(|source| Malformed { length: bytes.len(), source })
}

/// A controller's id as a field of a message.
pub fn id_to_bytes(id: u128) -> Vec<u8> {
    id.to_le_bytes().to_vec()
}

/// A controller's id from a field of a message.
///
/// # Errors
/// [`ErrorCode::InvalidArgument`] if it has not exactly 16 bytes.
pub fn id_from_bytes(bytes: &[u8]) -> Result<u128, Failure> {
    let array: [u8; 16] = bytes
        .try_into()
        .map_err(|_| Failure::invalid(format!("id of {} bytes, expected 16", bytes.len())))?;
    Ok(u128::from_le_bytes(array))
}

#[cfg(test)]
mod tests {
    use super::handoff::{AddRegion, Reply, Request, SetVectors, request};
    use super::*;

    #[test]
    fn a_request_survives_the_wire() {
        let vectors =
            SetVectors { controller_id: id_to_bytes(7), start: 3, present: vec![true, false] };
        let request = Request {
            id: 9,
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
            sender: "frontend-f0".into(),
            body: Some(request::Body::SetVectors(vectors)),
        };
        assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        assert!(decode::<Request>(&[0xFF; 32]).is_err());
        assert!(decode::<Reply>(b"\x0A\xFF\xFF\xFF\xFF\x0F").is_err());
        assert_eq!(decode::<AddRegion>(b"").unwrap(), AddRegion::default());
    }

    #[test]
    fn ids_have_sixteen_bytes() {
        assert_eq!(id_from_bytes(&id_to_bytes(u128::MAX - 5)).unwrap(), u128::MAX - 5);
        for length in [0, 15, 17] {
            let failure = id_from_bytes(&vec![0; length]).unwrap_err();
            assert_eq!(failure.code(), ErrorCode::InvalidArgument);
        }
    }
}
