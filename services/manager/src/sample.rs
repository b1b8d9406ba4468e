//! A configuration for tests, and others that differ from it in one place.

use crate::desired::Desired;
use crate::identity::Identities;
use service::config::Config;

pub(crate) const TEXT: &str = r#"
runtime_dir = "/run/vireo"
state_dir = "/var/lib/vireo"
[[worker]]
name = "w1"
[[worker]]
name = "w0"
core = 1
[[backend]]
name = "b0"
[[backend]]
name = "b1"
[[frontend]]
name = "f0"
[[frontend]]
name = "f1"
[[bdev]]
name = "mem0"
driver = "malloc"
size = "64MiB"
block_size = 4096
[[bdev]]
name = "null0"
driver = "null"
size = "1GiB"
latency = "10us"
channel = "ring"
backend = "b1"
[[bdev]]
name = "file0"
driver = "file"
path = "/data/file0"
direct = false
[[subsystem]]
name = "s0"
serial = "SN0"
model = "M0"
[[subsystem.namespace]]
nsid = 1
bdev = "mem0"
[[subsystem.namespace]]
nsid = 7
bdev = "null0"
[[subsystem]]
name = "s1"
nqn = "nqn.2024-01.org.example:s1"
frontend = "f1"
[[subsystem.namespace]]
nsid = 2
bdev = "file0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
queues = 8
vectors = 4
max_transfer = "256KiB"
[[endpoint]]
name = "vm1"
subsystem = "s1"
path = "/run/other/vm1"
doorbells = "shadow"
workers = ["w1"]
"#;

/// [`TEXT`] with each first part replaced by its second; what is to be replaced must be there.
pub(crate) fn config(edits: &[(&str, &str)]) -> Config {
    let mut text = TEXT.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from:?} is not in the sample");
        text = text.replacen(from, to, 1);
    }
    Config::parse(&text, []).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

/// The configuration with names for everything.
pub(crate) fn desired(config: Config) -> Desired {
    let mut identities = Identities::default();
    identities.complete(&config).unwrap();
    Desired { config, identities }
}
