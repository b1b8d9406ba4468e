//! The program itself: its exit status and its one line.

use std::path::Path;
use std::process::{Command, Output};

const TEXT: &str =
    "[[worker]]\nname = \"w0\"\n[[backend]]\nname = \"b0\"\n[[frontend]]\nname = \"f0\"\n";

fn write(directory: &Path, more: &str) {
    let place = directory.display();
    let text = format!("runtime_dir = \"{place}\"\nstate_dir = \"{place}/state\"\n{TEXT}{more}");
    std::fs::write(directory.join("vireo.toml"), text).unwrap();
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vireo-manager"))
        .arg("--config")
        .arg(directory.join("vireo.toml"))
        .args(arguments)
        .output()
        .unwrap()
}

fn texts(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn a_mistake_in_the_configuration_is_status_2_and_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "[[bdev]]\nname = \"m\"\ndriver = \"maloc\"\nsize = \"1MiB\"\n");
    let output = run(directory.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    let text = texts(&output);
    assert!(text.contains("bdev[0].driver: \"maloc\" is not known"), "{text}");
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    write(directory.path(), "");
    let output = run(directory.path(), &["--name", "m1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).contains("there is no manager \"m1\""), "{}", texts(&output));
    assert!(!directory.path().join("state").exists());
}

#[test]
fn a_state_file_of_a_newer_version_is_status_2_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "");
    let state = directory.path().join("state/manager.json");
    std::fs::create_dir(state.parent().unwrap()).unwrap();
    for (text, line) in
        [("{\"version\":99}", "has version 99"), ("junk", "is not a manager's state")]
    {
        std::fs::write(&state, text).unwrap();
        let output = run(directory.path(), &[]);
        assert_eq!(output.status.code(), Some(2), "{}", texts(&output));
        assert!(texts(&output).contains(line), "{}", texts(&output));
        assert_eq!(std::fs::read_to_string(&state).unwrap(), text);
    }
}

#[test]
fn a_second_manager_is_status_1() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "");
    let state = directory.path().join("state");
    let store = vireo_manager::store::Store::open(&state).unwrap();
    let output = run(directory.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).contains("another manager runs"), "{}", texts(&output));
    drop(store);
}
