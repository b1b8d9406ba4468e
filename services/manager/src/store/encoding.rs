//! The state file's content.

use super::{State, StoreError, VERSION};
use crate::identity::{Identities, NamespaceKey};
use crate::made::{Made, Request};
use crate::object::Object;
use serde::{Deserialize, Serialize};
use service::config::{Config, Uuid, parse_uuid};
use std::path::Path;

#[derive(Deserialize)]
struct Header {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u64,
    subsystems: Vec<SubsystemRow>,
    namespaces: Vec<NamespaceRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leaving: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    objects: Vec<ObjectRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    requests: Vec<RequestRow>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubsystemRow {
    name: String,
    nqn: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceRow {
    subsystem: String,
    nsid: u32,
    bdev: String,
    uuid: String,
}

/// What was made through the API.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectRow {
    name: String,
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestRow {
    id: String,
    digest: u64,
    name: String,
}

pub(super) fn encode(state: &State) -> Vec<u8> {
    let identities = &state.identities;
    let subsystem =
        |(name, nqn): (&String, &String)| SubsystemRow { name: name.clone(), nqn: nqn.clone() };
    let namespace = |(key, uuid): (&NamespaceKey, &Uuid)| NamespaceRow {
        subsystem: key.subsystem.clone(),
        nsid: key.nsid,
        bdev: key.bdev.clone(),
        uuid: uuid.to_string(),
    };
    let object = |(object, created): (&Object, &u64)| ObjectRow {
        name: object.to_string(),
        created_ms: *created,
        id: state.made.ids.get(object).cloned(),
    };
    let request = |request: &Request| RequestRow {
        id: request.id.clone(),
        digest: request.digest,
        name: request.object.to_string(),
    };
    let contents = Contents {
        version: VERSION,
        subsystems: identities.subsystems.iter().map(subsystem).collect(),
        namespaces: identities.namespaces.iter().map(namespace).collect(),
        config: state.config.as_ref().map(Config::to_toml),
        leaving: state.leaving.iter().map(Config::to_toml).collect(),
        objects: state.made.objects.iter().map(object).collect(),
        requests: state.made.requests.iter().map(request).collect(),
    };
    // Text and numbers: nothing in it that JSON cannot say.
    let mut bytes = serde_json::to_vec_pretty(&contents).expect("state is encodable");
    bytes.push(b'\n');
    bytes
}

pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<State, StoreError> {
    let wrong = |reason: String| StoreError::Format { path: path.to_owned(), reason };
    let json = |error: serde_json::Error| wrong(error.to_string());
    let Header { version } = serde_json::from_slice(bytes).map_err(json)?;
    if version > VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found: version });
    }
    if version == 0 {
        return Err(wrong(format!("there was no version {version}")));
    }
    let contents: Contents = serde_json::from_slice(bytes).map_err(json)?;
    let mut identities = Identities::default();
    for SubsystemRow { name, nqn } in contents.subsystems {
        if identities.subsystems.insert(name.clone(), nqn).is_some() {
            return Err(wrong(format!("subsystem {name} is there twice")));
        }
    }
    for NamespaceRow { subsystem, nsid, bdev, uuid } in contents.namespaces {
        let uuid = parse_uuid(&uuid).ok_or_else(|| wrong(format!("\"{uuid}\" is not a UUID")))?;
        let again = wrong(format!("namespace {nsid} of {subsystem} is there twice"));
        if identities.namespaces.insert(NamespaceKey { subsystem, nsid, bdev }, uuid).is_some() {
            return Err(again);
        }
    }
    let mut made = Made::default();
    let named = |name: String| {
        name.parse::<Object>().map_err(|error| wrong(format!("\"{name}\" is {error}")))
    };
    for ObjectRow { name, created_ms, id } in contents.objects {
        let object = named(name)?;
        made.ids.extend(id.map(|id| (object.clone(), id)));
        made.objects.insert(object, created_ms);
    }
    for RequestRow { id, digest, name } in contents.requests {
        made.remember(Request { id, digest, object: named(name)? });
    }
    let parse = |text: String| {
        Config::parse(&text, []).map_err(|mistakes| {
            let first = mistakes.first().map_or_else(String::new, ToString::to_string);
            wrong(format!("its configuration is not valid: {first}"))
        })
    };
    Ok(State {
        config: contents.config.map(parse).transpose()?,
        leaving: contents.leaving.into_iter().map(parse).collect::<Result<_, _>>()?,
        identities,
        made,
    })
}
