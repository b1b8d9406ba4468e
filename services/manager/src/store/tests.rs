use super::*;
use crate::made::Request;
use crate::object::Object;
use crate::sample;
use std::fs;

fn state() -> State {
    let desired = sample::desired(sample::config(&[]));
    let leaving = vec![sample::config(&[("\"64MiB\"", "\"32MiB\"")])];
    let mut made = Made::default();
    made.objects.insert(Object::Volume("null0".into()), 1_700_000_000_000);
    let namespace: Object = "subsystems/s0/namespaces/7".parse().unwrap();
    made.objects.insert(namespace.clone(), 1_700_000_000_001);
    made.ids.insert(namespace, "disk".into());
    made.remember(Request {
        id: "r1".into(),
        digest: u64::MAX,
        object: Object::Volume("null0".into()),
    });
    State { config: Some(desired.config), leaving, identities: desired.identities, made }
}

#[test]
fn what_is_stored_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("made/if/need/be");
    let mut store = Store::open(&place).unwrap();
    assert_eq!(*store.state(), State::default());
    let state = state();
    store.replace(state.clone()).unwrap();
    drop(store);
    assert_eq!(*Store::open(&place).unwrap().state(), state);
}

#[test]
fn a_second_manager_is_kept_out_until_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(first);
    Store::open(directory.path()).unwrap();
}

#[test]
fn a_death_between_write_and_rename_leaves_the_old_state() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    let state = state();
    store.replace(state.clone()).unwrap();
    drop(store);
    // All that a process which dies there leaves behind: a new file beside the old one, whole or in part.
    let next = encoding::encode(&State::default());
    for length in [0, next.len() / 2, next.len()] {
        fs::write(directory.path().join("manager.json.new"), &next[..length]).unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        assert_eq!(*store.state(), state);
        store.replace(state.clone()).unwrap();
        assert!(!directory.path().join("manager.json.new").exists());
    }
}

#[test]
fn a_write_that_fails_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    let state = state();
    store.replace(state.clone()).unwrap();
    let in_the_way = directory.path().join("manager.json.new");
    fs::create_dir(&in_the_way).unwrap();
    let error = store.replace(State::default()).unwrap_err();
    assert!(matches!(error, StoreError::Io { act: "write", .. }), "{error}");
    assert_eq!(*store.state(), state);
    drop(store);
    assert_eq!(*Store::open(directory.path()).unwrap().state(), state);
    fs::remove_dir(&in_the_way).unwrap();
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let good = String::from_utf8(encoding::encode(&state())).unwrap();
    let twice = r#"{"version":1,"subsystems":[{"name":"s","nqn":"a"},{"name":"s","nqn":"b"}],"namespaces":[]}"#;
    let uuid = good.find("\"uuid\": \"").unwrap() + 9;
    let mut bad_uuid = good.clone();
    bad_uuid.replace_range(uuid..=uuid, "x");
    let cases = [
        ("", "EOF"),
        ("\0\0\0\0", "expected value"),
        (&good[..good.len() / 2], "EOF"),
        ("[]", "invalid length"),
        ("{\"version\":\"1\"}", "invalid type"),
        ("{\"version\":0}", "there was no version 0"),
        ("{\"version\":1}", "missing field"),
        (&good.replacen("\"subsystems\"", "\"other\"", 1), "unknown field"),
        (&good.replacen("64MiB", "65", 1), "its configuration is not valid"),
        (&bad_uuid, "is not a UUID"),
        (twice, "is there twice"),
    ];
    for (text, reason) in cases {
        fs::write(&path, text).unwrap();
        let error = Store::open(directory.path()).expect_err(text);
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error} does not say {reason:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    // The same file without the damage.
    fs::write(&path, &good).unwrap();
    let state = encoding::decode(&path, good.as_bytes()).unwrap();
    assert_eq!(*Store::open(directory.path()).unwrap().state(), state);
    assert_eq!(state.config, Some(sample::config(&[])));
}

#[test]
fn a_newer_version_is_refused_whatever_else_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let text = r#"{"version":4,"all":"different"}"#;
    fs::write(&path, text).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 4, .. }), "{error}");
    assert!(error.to_string().contains("start the version that wrote it"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_state_of_before_the_api_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let text = r#"{"version":1,"subsystems":[{"name":"s","nqn":"a"}],"namespaces":[]}"#;
    fs::write(&path, text).unwrap();
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.state().identities.subsystems["s"], "a");
    assert_eq!(store.state().made, Made::default());
}
