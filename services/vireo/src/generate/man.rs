//! Man pages: section 1 for `vireo` and its commands, section 8 for the services.

use anyhow::Context;
use clap::{Arg, Command};
use clap_mangen::Man;
use service::config::{Kind, MANAGER};
use service::start::Arguments;
use std::fs;
use std::path::Path;

/// What every service's page ends with, in the language of man(7).
const REST: &str = r#".SH FILES
.TP
\fI/etc/vireo/vireo.toml\fR
The host's configuration.
.TP
\fI/run/vireo\fR
Sockets of the services and of endpoints.
.TP
\fI/var/lib/vireo\fR
What outlives restarts: names made up, LBA formats, write protection, disk images.
.SH ENVIRONMENT
.TP
\fBVIREO_LOG\fR
Which events are logged: a level, or a list like \fIinfo,vireo_frontend=debug\fR.
.TP
\fBVIREO_LOG_FORMAT\fR
\fIhuman\fR, \fIjournal\fR or \fIjson\fR; otherwise chosen by where standard error goes.
.TP
\fBVIREO__\fIKEY\fR
Replaces a key of the configuration, as in \fIVIREO__WORKER__W0__CORE=3\fR.
.TP
\fBNOTIFY_SOCKET\fR, \fBWATCHDOG_USEC\fR, \fBLISTEN_FDS\fR
The protocol of systemd, which \fBvireo up\fR speaks as well: readiness, watchdog, kept descriptors.
.SH EXIT STATUS
.TP
0
It was told to stop, and has.
.TP
1
It could not start, or failed; starting it again may help.
.TP
2
Its configuration is wrong, and each mistake was told in a line of its own. Starting it again is of no use.
.SH SEE ALSO
\fBvireo\fR(1)
"#;

/// Writes all pages.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write(command: Command, directory: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(command, directory).context("write the pages of vireo")?;
    for kind in [Kind::Frontend, Kind::Worker, Kind::Backend, Kind::Manager] {
        let path = directory.join(format!("vireo-{kind}.8"));
        fs::write(&path, service_page(kind)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn service_page(kind: Kind) -> anyhow::Result<Vec<u8>> {
    let (name, about, more) = match kind {
        Kind::Frontend => (
            "vireo-frontend",
            "serves vfio-user sockets of virtual NVMe controllers",
            "PCI configuration space, registers and the admin queue of each controller live here, \
             with the table of the guest's memory. A client connects to the socket cntrl in the \
             directory of an endpoint.",
        ),
        Kind::Worker => (
            "vireo-worker",
            "serves I/O queues of virtual NVMe controllers on one core",
            "One thread polls the doorbells of its guests, takes commands out of their memory and \
             completes them; without work it sleeps.",
        ),
        Kind::Backend => (
            "vireo-backend",
            "owns block devices of virtual NVMe controllers",
            "Opens, sizes and resets devices, serves requests of workers, and hands workers what \
             they need to do the I/O themselves.",
        ),
        Kind::Manager => (
            "vireo-manager",
            "keeps what a host serves as its configuration says",
            "Reads the configuration, tells frontends and backends what to serve, and answers \
             vireo reload and vireo status. Nothing stops while it is away.",
        ),
    };
    let command = Command::new(name).version(env!("CARGO_PKG_VERSION"));
    let command = <Arguments as clap::Args>::augment_args(command).about(about).long_about(more);
    let command = match kind {
        // There is one on a host, and it needs no name.
        Kind::Manager => {
            command.mut_arg("name", |name: Arg| name.required(false).default_value(MANAGER))
        }
        Kind::Frontend | Kind::Worker | Kind::Backend => command,
    };
    let mut page = Vec::new();
    Man::new(command).section("8").manual("Vireo").render(&mut page).context("render a page")?;
    page.extend_from_slice(REST.as_bytes());
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_a_page_that_names_its_options() {
        for kind in [Kind::Frontend, Kind::Worker, Kind::Backend, Kind::Manager] {
            let page = String::from_utf8(service_page(kind).unwrap()).unwrap();
            assert!(page.contains(&format!("vireo\\-{kind}")), "{page}");
            assert!(page.contains("\\-\\-config"), "{page}");
            assert!(page.contains(".SH EXIT STATUS"), "{page}");
        }
    }

    #[test]
    fn hidden_commands_have_no_page() {
        let directory = tempfile::tempdir().unwrap();
        let command = Command::new("vireo")
            .subcommand(Command::new("shown"))
            .subcommand(Command::new("hidden").hide(true));
        write(command, directory.path()).unwrap();
        assert!(directory.path().join("vireo.1").exists());
        assert!(directory.path().join("vireo-shown.1").exists());
        assert!(!directory.path().join("vireo-hidden.1").exists());
        assert!(directory.path().join("vireo-manager.8").exists());
    }
}
