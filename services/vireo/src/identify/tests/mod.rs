//! Two known controllers, described: one that can much and one that can little.

mod known;

use super::fact::{json, text};
use super::{describe, to_json};
use known::{plain, rich};

/// Compares with what is kept, and shows the whole of what came if it differs.
#[track_caller]
fn same(found: &str, kept: &str) {
    let line = found.lines().zip(kept.lines()).position(|(found, kept)| found != kept);
    assert!(found == kept, "differs from line {line:?} on; found:\n{found}");
}

#[test]
fn a_controller_that_can_much_is_described_in_words() {
    same(&text(&describe(&rich())), include_str!("rich.txt"));
}

#[test]
fn a_controller_that_can_little_says_what_it_cannot() {
    let text = text(&describe(&plain()));
    same(&text, include_str!("plain.txt"));
    assert!(text.matches("not supported").count() > 20);
}

#[test]
fn the_names_of_the_json_are_stable() {
    for (snapshot, kept) in
        [(rich(), include_str!("rich.json")), (plain(), include_str!("plain.json"))]
    {
        same(&format!("{:#}\n", to_json(&describe(&snapshot))), kept);
    }
}

#[test]
fn names_are_snake_case_and_no_two_facts_share_one() {
    for snapshot in [rich(), plain()] {
        let sections = describe(&snapshot);
        for section in &sections {
            let mut names: Vec<_> =
                section.facts.iter().flat_map(|fact| fact.values.iter().map(|v| &v.0)).collect();
            for name in &names {
                let fits =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
                assert!(name.bytes().all(fits), "{name}");
            }
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all, "{}", section.title);
        }
        assert!(!json(&sections).is_empty());
    }
}

#[test]
fn garbage_in_every_structure_is_described_without_a_fault() {
    use zerocopy::IntoBytes;
    for byte in [0x00, 0x55, 0x7F, 0x80, 0xFF] {
        let mut snapshot = rich();
        snapshot.cap = nvme_spec::register::Cap::from_bits(u64::from_le_bytes([byte; 8]));
        snapshot.vs = nvme_spec::register::Vs::from_bits(u32::from_le_bytes([byte; 4]));
        snapshot.controller.as_mut_bytes().fill(byte);
        for namespace in &mut snapshot.namespaces {
            if let super::fact::Answer::Given(identify) = &mut namespace.identify {
                identify.as_mut_bytes().fill(byte);
            }
        }
        for feature in &mut snapshot.features {
            if let super::fact::Answer::Given(value) = &mut feature.current {
                value.dw0 = u32::from_le_bytes([byte; 4]);
                value.data.fill(byte);
            }
        }
        if let super::fact::Answer::Given(smart) = &mut snapshot.logs.smart {
            smart.as_mut_bytes().fill(byte);
        }
        if let super::fact::Answer::Given(page) = &mut snapshot.logs.commands {
            page.as_mut_bytes().fill(byte);
        }
        let sections = describe(&snapshot);
        let text = text(&sections);
        assert!(text.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{byte:#x}");
        assert!(to_json(&sections).is_object());
    }
}
