//! Descriptors as far as they are on the wire: names, numbers, types and labels; no comments, options or files.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeMap, BTreeSet};

const PACKAGE: &str = "opi_api.storage.v1";
/// What a foreign set may have that ours lacks: of a part of the API that is not served.
const NOT_SERVED: [&str; 1] = ["enum .opi_api.storage.v1.EncryptionType"];

/// Everything of the package: `message .a.B`, `enum .a.C` and `service a.D` with their fields, values and methods, one
/// line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wire(BTreeMap<String, BTreeSet<String>>);

impl Wire {
    /// What a set has.
    pub fn of(set: &FileDescriptorSet) -> Self {
        let mut wire = Self::default();
        for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
            for message in &file.message_type {
                wire.message(&format!(".{PACKAGE}"), message);
            }
            for values in &file.enum_type {
                wire.values(&format!(".{PACKAGE}"), values);
            }
            for service in &file.service {
                let methods = service.method.iter().map(|method| {
                    let stream = |is: bool| if is { "stream " } else { "" };
                    format!(
                        "{}({}{}) returns ({}{})",
                        method.name(),
                        stream(method.client_streaming()),
                        method.input_type(),
                        stream(method.server_streaming()),
                        method.output_type()
                    )
                });
                wire.0.insert(format!("service {PACKAGE}.{}", service.name()), methods.collect());
            }
        }
        wire
    }

    fn message(&mut self, parent: &str, message: &DescriptorProto) {
        let name = format!("{parent}.{}", message.name());
        let fields = message.field.iter().map(|field| {
            let label = Label::try_from(field.label.unwrap_or_default()).expect("a label");
            let kind = Type::try_from(field.r#type.unwrap_or_default()).expect("a type");
            let oneof = field.oneof_index.and_then(|at| message.oneof_decl.get(at as usize));
            let oneof = oneof.map_or("", |oneof| oneof.name());
            let presence = if field.proto3_optional() { "optional" } else { "" };
            format!(
                "{} = {}: {label:?} {kind:?} {} {oneof} {presence}",
                field.name(),
                field.number(),
                field.type_name()
            )
        });
        self.0.insert(format!("message {name}"), fields.collect());
        for inner in &message.nested_type {
            self.message(&name, inner);
        }
        for values in &message.enum_type {
            self.values(&name, values);
        }
    }

    fn values(&mut self, parent: &str, values: &EnumDescriptorProto) {
        let lines =
            values.value.iter().map(|value| format!("{} = {}", value.name(), value.number()));
        self.0.insert(format!("enum {parent}.{}", values.name()), lines.collect());
    }
}

/// Where the two differ, one line each.
pub fn differences(ours: &Wire, theirs: &Wire) -> Vec<String> {
    let names: BTreeSet<&String> = ours.0.keys().chain(theirs.0.keys()).collect();
    let none = BTreeSet::new();
    let mut lines = Vec::new();
    for name in names.into_iter().filter(|name| !NOT_SERVED.contains(&name.as_str())) {
        let of = |wire: &Wire| wire.0.get(name).cloned();
        if of(ours).is_none() {
            lines.push(format!("{name} is theirs alone"));
        }
        if of(theirs).is_none() {
            lines.push(format!("{name} is ours alone"));
        }
        let (ours, theirs) =
            (of(ours).unwrap_or_else(|| none.clone()), of(theirs).unwrap_or_else(|| none.clone()));
        lines.extend(ours.difference(&theirs).map(|line| format!("{name}: ours has {line}")));
        lines.extend(theirs.difference(&ours).map(|line| format!("{name}: theirs has {line}")));
    }
    lines
}

#[test]
fn whatever_differs_is_seen() {
    use prost::Message;
    let set = FileDescriptorSet::decode(vireo_api::DESCRIPTORS).expect("descriptors");
    let ours = Wire::of(&set);
    assert!(ours.0.len() > 60, "{}", ours.0.len());
    assert!(differences(&ours, &ours).is_empty());
    type Damage = fn(&mut FileDescriptorSet);
    let damages: [Damage; 6] = [
        |set| frontend(set).message_type[0].field[0].number = Some(77),
        |set| frontend(set).message_type[0].field[0].name = Some("other".into()),
        |set| frontend(set).message_type[0].field[0].r#type = Some(Type::Bytes.into()),
        |set| frontend(set).message_type[0].field[0].label = Some(Label::Repeated.into()),
        |set| drop(frontend(set).message_type.pop()),
        |set| frontend(set).service[0].method[0].output_type = Some(".other".into()),
    ];
    for damage in damages {
        let mut other = set.clone();
        damage(&mut other);
        assert!(!differences(&ours, &Wire::of(&other)).is_empty());
        assert!(!differences(&Wire::of(&other), &ours).is_empty());
    }
}

/// The file with the service of subsystems.
fn frontend(set: &mut FileDescriptorSet) -> &mut prost_types::FileDescriptorProto {
    let is_it = |file: &&mut prost_types::FileDescriptorProto| {
        file.service.iter().any(|service| service.name() == "FrontendNvmeService")
    };
    set.file.iter_mut().find(is_it).expect("it is there")
}
