//! What only the machine can tell: whether files and cores are there.

use super::mistake::Mistake;
use super::units::format_size;
use super::{Bdev, Config, Driver};
use crate::cpu;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

pub(super) fn check(config: &Config) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    cores(config, &mut mistakes);
    mistakes.extend(super::api::check_host(&config.api));
    let mut seen: Vec<(PathBuf, usize, bool)> = Vec::new();
    for (index, bdev) in config.bdevs.iter().enumerate() {
        mistakes.extend(super::drive::check_host(bdev, index));
        let Driver::File { path, read_only, .. } = &bdev.driver else { continue };
        if let Err((key, wrong, right)) = file(bdev) {
            mistakes.push(Mistake::new(format!("bdev[{index}].{key}"), wrong, right));
        }
        // Two names of one file; equal paths were noted before.
        let Ok(real) = fs::canonicalize(path) else { continue };
        let same =
            seen.iter().find(|(other, _, shared)| *other == real && !(*shared && *read_only));
        if let Some((_, first, _)) = same {
            let wrong = format!("{} is the file of bdev[{first}]", path.display());
            let right = "give each its own file, or make both read_only";
            mistakes.push(Mistake::new(format!("bdev[{index}].path"), wrong, right));
        }
        seen.push((real, index, *read_only));
    }
    mistakes
}

fn cores(config: &Config, mistakes: &mut Vec<Mistake>) {
    // Without an answer there is nothing to compare with; pinning itself will say what is wrong.
    let Ok(allowed) = cpu::allowed_cores() else { return };
    for (index, worker) in config.workers.iter().enumerate() {
        if let Some(core) = worker.core.filter(|core| !allowed.contains(core)) {
            let wrong = format!("core {core} is not there for this process");
            let right = format!("use one of {}", cpu::format_cores(&allowed));
            mistakes.push(Mistake::new(format!("worker[{index}].core"), wrong, right));
        }
    }
}

type Wrong = (&'static str, String, String);

fn file(bdev: &Bdev) -> Result<(), Wrong> {
    let Driver::File { path, create, read_only, .. } = &bdev.driver else { return Ok(()) };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && *create => {
            return parent(path);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let right = "name a file that is there, or add create = true and a size";
            return Err(("path", format!("{} is not there", path.display()), right.into()));
        }
        Err(error) => return Err(unusable(path, &error)),
    };
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let wrong = format!("{} is neither a file nor a block device", path.display());
        return Err(("path", wrong, "name one".into()));
    }
    let mut opened = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(|error| unusable(path, &error))?;
    let found = length(&mut opened).map_err(|error| unusable(path, &error))?;
    size(bdev, path, *create && kind.is_file(), found)
}

fn size(bdev: &Bdev, path: &Path, may_grow: bool, found: u64) -> Result<(), Wrong> {
    let block = u64::from(bdev.block_size);
    match bdev.size {
        Some(size) if size > found && !may_grow => {
            let wrong = format!("{} has only {}", path.display(), format_size(found));
            let right = format!("write at most \"{}\"", format_size(found / block * block));
            Err(("size", wrong, right))
        }
        Some(_) => Ok(()),
        None if found == 0 => {
            let wrong = format!("{} is empty", path.display());
            Err(("path", wrong, "add create = true and a size".into()))
        }
        None if !found.is_multiple_of(block) => {
            let wrong =
                format!("the size {found} of {} is not a multiple of {block}", path.display());
            let right =
                format!("add size = {}, or make the file a multiple", found / block * block);
            Err(("path", wrong, right))
        }
        None => Ok(()),
    }
}

fn parent(path: &Path) -> Result<(), Wrong> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    if directory.is_dir() {
        return Ok(());
    }
    let wrong = format!("its directory {} is not there", directory.display());
    Err(("path", wrong, "make the directory, or name another".into()))
}

fn length(file: &mut File) -> std::io::Result<u64> {
    // A block device's metadata has no length; its end has.
    file.seek(SeekFrom::End(0))
}

fn unusable(path: &Path, error: &std::io::Error) -> Wrong {
    let wrong = format!("{} cannot be used: {error}", path.display());
    ("path", wrong, "give this user access, or name another file".into())
}
