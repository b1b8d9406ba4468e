//! Messages of the API as JSON and back, in protobuf's own mapping, by the descriptors that the API publishes.

use anyhow::{Context, anyhow};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;
use std::sync::LazyLock;

static POOL: LazyLock<Result<DescriptorPool, String>> = LazyLock::new(|| {
    DescriptorPool::decode(vireo_api::DESCRIPTORS).map_err(|error| error.to_string())
});

/// A message of the package `vireo.v1`, by its name there.
fn descriptor(name: &str) -> anyhow::Result<MessageDescriptor> {
    let pool = POOL.as_ref().map_err(|error| anyhow!("descriptors of the api: {error}"))?;
    pool.get_message_by_name(&format!("vireo.v1.{name}"))
        .with_context(|| format!("the api has no message {name}"))
}

/// The JSON of a message; fields are named as in the .proto files.
///
/// # Errors
/// There is no such message in the API.
pub(super) fn of(name: &str, message: &impl Message) -> anyhow::Result<Value> {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(name)?, bytes.as_slice())?;
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// The message that JSON stands for.
///
/// # Errors
/// What does not fit, by the field's name.
pub(super) fn to<M: Message + Default>(name: &str, json: Value) -> anyhow::Result<M> {
    let dynamic = DynamicMessage::deserialize(descriptor(name)?, json)?;
    Ok(M::decode(dynamic.encode_to_vec().as_slice())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_api::v1::{MallocVolume, Volume, volume};

    #[test]
    fn messages_survive_json() {
        let volume = Volume {
            name: "volumes/data".to_owned(),
            driver: Some(volume::Driver::Malloc(MallocVolume {})),
            size_bytes: 1 << 40,
            ..Volume::default()
        };
        let json = of("Volume", &volume).unwrap();
        assert_eq!(
            json["size_bytes"], "1099511627776",
            "64-bit numbers are text in protobuf's JSON"
        );
        assert!(json["malloc"].is_object());
        assert_eq!(to::<Volume>("Volume", json).unwrap(), volume);
    }

    #[test]
    fn a_field_that_is_not_there_is_named() {
        let error = to::<Volume>("Volume", serde_json::json!({ "sise_bytes": 1 })).unwrap_err();
        assert!(error.to_string().contains("sise_bytes"), "{error}");
    }
}
