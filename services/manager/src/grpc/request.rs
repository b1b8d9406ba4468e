//! What every request that changes something has: an identifier, `validate_only`, an etag; and the names in requests.

use super::error;
use crate::manager::edit::{Call, EditError};
use crate::object::Object;
use crate::view::{Standing, View};
use prost::Message;
use tonic::Status;
use vireo_api::v1::{Origin, State};

/// Longest identifier of a request.
const MAX_REQUEST_ID: usize = 64;

/// How a change is asked for. `message` is the whole request.
pub(crate) fn call(
    method: &str,
    message: &impl Message,
    request_id: &str,
    validate_only: bool,
) -> Result<Call, Status> {
    if request_id.is_empty() {
        return Ok(Call { request: None, validate_only });
    }
    let printable = request_id.bytes().all(|byte| (0x20..=0x7E).contains(&byte));
    if request_id.len() > MAX_REQUEST_ID || !printable {
        let text = format!("write at most {MAX_REQUEST_ID} printable ASCII characters");
        return Err(error::invalid("request_id", text));
    }
    let digest = digest([method.as_bytes(), &message.encode_to_vec()]);
    Ok(Call { request: Some((request_id.to_owned(), digest)), validate_only })
}

/// FNV-1a: the same in every version and on every machine. It guards against mistakes, not against those who may change
/// everything anyway.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut digest = 0xCBF2_9CE4_8422_2325_u64;
    for part in parts {
        // A separator, so that two parts are not one.
        for byte in part.iter().chain(&[0xFF]) {
            digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
    digest
}

/// The etag of a resource: a digest of the message without its output of the moment.
pub(crate) fn etag(message: &impl Message) -> String {
    format!("{:016x}", digest([message.encode_to_vec().as_slice()]))
}

/// An etag that the caller gave must be the present one.
pub(crate) fn compare_etag(object: &Object, given: &str, now: &str) -> Result<(), EditError> {
    if given.is_empty() || given == now { Ok(()) } else { Err(EditError::Changed(object.clone())) }
}

/// The object that `field` names, of the kind that `is` accepts.
pub(crate) fn named(
    field: &str,
    name: &str,
    pattern: &str,
    is: impl Fn(&Object) -> bool,
) -> Result<Object, Status> {
    let object: Option<Object> = name.parse().ok().filter(is);
    object.ok_or_else(|| error::invalid(field, format!("\"{name}\" is not like {pattern}")))
}

/// An object that is to be changed: it must be there, and not the file's.
pub(crate) fn changeable(view: &View, object: &Object) -> Result<(), EditError> {
    if !object.is_in(&view.desired.config) {
        return Err(EditError::Missing(object.clone()));
    }
    if !view.made.objects.contains_key(object) {
        return Err(EditError::OfFile(object.clone()));
    }
    Ok(())
}

/// An object that is to be made: it must not be there.
pub(crate) fn absent(view: &View, object: &Object) -> Result<(), EditError> {
    if object.is_in(&view.desired.config) {
        return Err(EditError::Exists(object.clone()));
    }
    Ok(())
}

/// What all resources say of themselves.
pub(crate) struct Common {
    pub(crate) origin: i32,
    pub(crate) state: i32,
    pub(crate) state_message: String,
    pub(crate) create_time: Option<prost_types::Timestamp>,
}

/// What an object says of itself, as all do.
pub(crate) fn common(view: &View, object: &Object) -> Common {
    let made = view.made.objects.get(object);
    let (state, state_message) = match view.standing(object) {
        Standing::Ready => (State::Ready, String::new()),
        Standing::Reconciling => (State::Reconciling, String::new()),
        Standing::Failed(reason) => (State::Failed, reason),
    };
    Common {
        origin: if made.is_some() { Origin::Api } else { Origin::File }.into(),
        state: state.into(),
        state_message,
        create_time: made.map(|ms| super::time::from_ms(*ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_api::v1::{DeleteVolumeRequest, GetVolumeRequest};

    #[test]
    fn a_request_is_the_same_only_with_the_same_content() {
        let message = |name: &str| DeleteVolumeRequest { name: name.into(), ..Default::default() };
        let digest =
            |method, name| call(method, &message(name), "r", false).unwrap().request.unwrap().1;
        assert_eq!(digest("Delete", "a"), digest("Delete", "a"));
        assert_ne!(digest("Delete", "a"), digest("Delete", "b"));
        assert_ne!(digest("Delete", "a"), digest("Update", "a"));
        assert_eq!(call("Delete", &message("a"), "", true).unwrap().request, None);
        for wrong in ["ä", "\n", &"x".repeat(65)] {
            let status = call("Delete", &message("a"), wrong, false).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
        assert!(call("Delete", &message("a"), &"x".repeat(64), false).is_ok());
    }

    #[test]
    fn an_etag_is_another_one_for_other_content() {
        let etag = |name: &str| etag(&GetVolumeRequest { name: name.into() });
        assert_eq!(etag("a"), etag("a"));
        assert_ne!(etag("a"), etag("b"));
        let object = Object::Volume("a".into());
        assert!(compare_etag(&object, "", "x").is_ok());
        assert!(compare_etag(&object, "x", "x").is_ok());
        assert!(compare_etag(&object, "y", "x").is_err());
    }
}
