//! Where sockets and state lie.

use super::finding::Finding;
use super::machine::Machine;
use service::config::Config;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Permission to list, to make files and to reach them.
const ALL: u32 = 7;

/// Looks at them.
pub fn check(machine: &Machine, config: &Config) -> Vec<Finding> {
    vec![
        directory(machine, "runtime_dir", &config.runtime_dir),
        directory(machine, "state_dir", &config.state_dir),
    ]
}

fn directory(machine: &Machine, key: &str, path: &Path) -> Finding {
    let (who, shown) = (&machine.who, path.display());
    let Some(found) = machine.metadata(path) else {
        return to_be_made(machine, key, path);
    };
    if !found.is_dir() {
        let remedy = format!("name another {key}, or move that away");
        return Finding::problem(key, format!("{shown} is no directory"), remedy);
    }
    if !who.may(&found, ALL) {
        return Finding::problem(
            key,
            format!("{} may not write to {shown}", who.name),
            format!("chown {} {shown}", who.name),
        );
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o002 != 0 {
        return Finding::warning(
            key,
            format!("everybody may write to {shown} (mode {mode:o}), and take sockets' places"),
            format!("chmod o-w {shown}"),
        );
    }
    Finding::ok(key, format!("{shown}, mode {mode:o}, {} may write", who.name))
}

/// It is made at the start, if that may be.
fn to_be_made(machine: &Machine, key: &str, path: &Path) -> Finding {
    let (who, shown) = (&machine.who, path.display());
    let above: Option<PathBuf> =
        path.ancestors().skip(1).find(|above| machine.is_there(above)).map(Path::to_owned);
    let found = above.as_ref().and_then(|above| machine.metadata(above));
    match (above, found) {
        (Some(_), Some(found)) if found.is_dir() && who.may(&found, ALL) => {
            Finding::ok(key, format!("{shown} is made at the start"))
        }
        (Some(above), _) => Finding::problem(
            key,
            format!(
                "{shown} is not there, and {} may not make it in {}",
                who.name,
                above.display()
            ),
            format!("install -d -o {} -m 750 {shown}", who.name),
        ),
        (None, _) => {
            Finding::problem(key, format!("{shown} is not there"), format!("mkdir {shown}"))
        }
    }
}
