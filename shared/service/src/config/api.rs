//! `[api]`: where the manager serves its gRPC API, and to whom.

use super::mistake::Mistake;
use super::print;
use super::section::Section;
use nix::unistd::{Group, User};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The socket's name in the runtime directory if none is configured.
const SOCKET: &str = "api.sock";
/// Most callers of one kind that can be named: each connection is compared with all of them.
const MAX_CALLERS: usize = 256;

/// Where the manager serves its gRPC API, and to whom. Users and groups are names, or numbers in decimal digits. An
/// administrator may do everything, an observer may read. The superuser and the manager's own user are administrators
/// always; who is none of these is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Administrators by user.
    pub admin_users: Vec<String>,
    /// Administrators by group.
    pub admin_groups: Vec<String>,
    /// Observers by user.
    pub observer_users: Vec<String>,
    /// Observers by group.
    pub observer_groups: Vec<String>,
    /// TCP beside the Unix socket.
    pub tls: Option<Tls>,
    /// Administrators may have faults injected into volumes; workers look at it when they start.
    pub fault_injection: bool,
}

/// TCP, with mutual TLS only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Address and port.
    pub listen: SocketAddr,
    /// The manager's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates, PEM.
    pub client_ca: PathBuf,
    /// Administrators: subject alternative names (DNS names or URIs) of their certificates.
    pub admin_names: Vec<String>,
    /// Observers, likewise.
    pub observer_names: Vec<String>,
}

pub(super) fn parse(section: Option<Section<'_>>, runtime_dir: &Path) -> Api {
    let mut api = Api {
        socket: runtime_dir.join(SOCKET),
        admin_users: Vec::new(),
        admin_groups: Vec::new(),
        observer_users: Vec::new(),
        observer_groups: Vec::new(),
        tls: None,
        fault_injection: false,
    };
    let Some(section) = section else { return api };
    if let Some(socket) = section.path("socket") {
        api.socket = socket;
    }
    api.admin_users = callers(&section, "admin_users");
    api.admin_groups = callers(&section, "admin_groups");
    api.observer_users = callers(&section, "observer_users");
    api.observer_groups = callers(&section, "observer_groups");
    api.tls = tls(&section);
    api.fault_injection = section.boolean("fault_injection").unwrap_or(false);
    section.finish(&[]);
    api
}

fn tls(section: &Section<'_>) -> Option<Tls> {
    let listen = section.text("listen");
    let certificate = section.path("certificate");
    let key = section.path("key");
    let client_ca = section.path("client_ca");
    let admin_names = callers(section, "admin_names");
    let observer_names = callers(section, "observer_names");
    let Some(listen) = listen else {
        for key in ["certificate", "key", "client_ca", "admin_names", "observer_names"] {
            if section.has(key) {
                let right = "add listen = \"127.0.0.1:7443\", or remove it";
                section.wrong(key, "is for TCP only, and listen is not set", right);
            }
        }
        return None;
    };
    for key in ["certificate", "key", "client_ca"] {
        if !section.has(key) {
            let wrong = "is missing: TCP is served with mutual TLS only";
            section.wrong(key, wrong, format!("add {key} = \"/...\" of a PEM file"));
        }
    }
    let Ok(listen) = listen.parse() else {
        let wrong = format!("\"{listen}\" is not an address with a port");
        section.wrong("listen", wrong, "write it like \"127.0.0.1:7443\" or \"[::1]:7443\"");
        return None;
    };
    Some(Tls {
        listen,
        certificate: certificate?,
        key: key?,
        client_ca: client_ca?,
        admin_names,
        observer_names,
    })
}

fn callers(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let callers = section.texts(key).unwrap_or_default();
    if callers.len() > MAX_CALLERS {
        let wrong = format!("names {} callers", callers.len());
        section.wrong(key, wrong, format!("name at most {MAX_CALLERS}, or a group"));
    }
    if callers.iter().any(String::is_empty) {
        section.wrong(key, "holds an empty name", "remove it");
    }
    callers
}

/// What only the machine can tell: whether users, groups and files are there.
pub(super) fn check_host(api: &Api) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (key, names) in [("admin_users", &api.admin_users), ("observer_users", &api.observer_users)]
    {
        for name in names.iter().filter(|name| user(name).is_none()) {
            let wrong = format!("there is no user \"{name}\"");
            mistakes.push(Mistake::new(format!("api.{key}"), wrong, "name one, or a number"));
        }
    }
    for (key, names) in
        [("admin_groups", &api.admin_groups), ("observer_groups", &api.observer_groups)]
    {
        for name in names.iter().filter(|name| group(name).is_none()) {
            let wrong = format!("there is no group \"{name}\"");
            mistakes.push(Mistake::new(format!("api.{key}"), wrong, "name one, or a number"));
        }
    }
    if let Some(tls) = &api.tls {
        let files =
            [("certificate", &tls.certificate), ("key", &tls.key), ("client_ca", &tls.client_ca)];
        for (key, path) in files {
            if let Err(error) = std::fs::File::open(path) {
                let wrong = format!("{} cannot be read: {error}", path.display());
                mistakes.push(Mistake::new(format!("api.{key}"), wrong, "name a PEM file"));
            }
        }
    }
    mistakes
}

/// The user's number.
fn user(name: &str) -> Option<u32> {
    let found = || User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    name.parse().ok().or_else(found)
}

/// The group's number.
fn group(name: &str) -> Option<u32> {
    let found = || Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    name.parse().ok().or_else(found)
}

impl Api {
    /// Numbers of the users and groups that may administrate, then of those that may observe; unknown names are left
    /// out.
    pub fn numbers(&self) -> [(Vec<u32>, Vec<u32>); 2] {
        let users = |names: &[String]| names.iter().filter_map(|name| user(name)).collect();
        let groups = |names: &[String]| names.iter().filter_map(|name| group(name)).collect();
        [
            (users(&self.admin_users), groups(&self.admin_groups)),
            (users(&self.observer_users), groups(&self.observer_groups)),
        ]
    }
}

pub(super) fn print(api: &Api) -> Value {
    let list = |names: &[String]| Value::Array(names.iter().map(|n| print::text(n)).collect());
    let mut table = Table::new();
    table.insert("socket".into(), print::path(&api.socket));
    table.insert("admin_users".into(), list(&api.admin_users));
    table.insert("admin_groups".into(), list(&api.admin_groups));
    table.insert("observer_users".into(), list(&api.observer_users));
    table.insert("observer_groups".into(), list(&api.observer_groups));
    table.insert("fault_injection".into(), Value::Boolean(api.fault_injection));
    if let Some(tls) = &api.tls {
        table.insert("listen".into(), print::text(&tls.listen.to_string()));
        table.insert("certificate".into(), print::path(&tls.certificate));
        table.insert("key".into(), print::path(&tls.key));
        table.insert("client_ca".into(), print::path(&tls.client_ca));
        table.insert("admin_names".into(), list(&tls.admin_names));
        table.insert("observer_names".into(), list(&tls.observer_names));
    }
    Value::Table(table)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const TEXT: &str = "runtime_dir = \"/run/x\"\n[[worker]]\nname = \"w0\"\n[[backend]]\nname = \"b0\"\n\
                        [[frontend]]\nname = \"f0\"\n";
    const TCP: &str =
        "listen = \"127.0.0.1:7443\"\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\n";

    fn with(keys: &str) -> Result<Api, Vec<String>> {
        let lines =
            |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>();
        let config = Config::parse(&format!("{TEXT}[api]\n{keys}"), []).map_err(lines)?;
        assert_eq!(Config::parse(&config.to_toml(), []).as_ref(), Ok(&config), "it reads back");
        Ok(config.api)
    }

    #[test]
    fn without_a_word_it_is_a_socket_in_the_runtime_directory() {
        let api = Config::parse(TEXT, []).unwrap().api;
        assert_eq!(api, with("").unwrap());
        assert_eq!(api.socket, Path::new("/run/x/api.sock"));
        assert_eq!((api.tls, api.fault_injection), (None, false));
        assert!(with("fault_injection = true\n").unwrap().fault_injection);
    }

    #[test]
    fn callers_and_tcp_are_read() {
        let users =
            "socket = \"/run/y\"\nadmin_users = [\"root\", \"7\"]\nobserver_groups = [\"8\"]\n";
        let names = "admin_names = [\"ops.example\"]\n";
        let api = with(&format!("{users}{TCP}{names}")).unwrap();
        assert_eq!(api.socket, Path::new("/run/y"));
        assert_eq!(api.numbers(), [(vec![0, 7], vec![]), (vec![], vec![8])]);
        let tls = api.tls.unwrap();
        assert_eq!(
            (tls.listen.port(), tls.admin_names.as_slice()),
            (7443, &["ops.example".to_owned()][..])
        );
    }

    #[test]
    fn each_mistake_is_one_line() {
        let without_key = TCP.replace("key = \"/k\"\n", "");
        let cases = [
            ("socket = \"x\"\n", "api.socket: \"x\" is not an absolute path"),
            ("admins = [\"x\"]\n", "api.admins: unknown key"),
            ("admin_users = \"x\"\n", "api.admin_users: is text, not a list of texts"),
            ("admin_users = [\"\"]\n", "api.admin_users: holds an empty name"),
            ("key = \"/k\"\n", "api.key: is for TCP only"),
            (&without_key, "api.key: is missing: TCP is served with mutual TLS only"),
            (&TCP.replace("127.0.0.1:7443", "here"), "api.listen: \"here\" is not an address"),
        ];
        for (keys, line) in cases {
            let lines = with(keys).unwrap_err();
            assert!(lines.len() == 1 && lines[0].starts_with(line), "{lines:?}");
        }
        let many = vec!["\"x\""; MAX_CALLERS + 1].join(",");
        let lines = with(&format!("observer_users = [{many}]\n")).unwrap_err();
        assert!(
            lines.len() == 1 && lines[0].starts_with("api.observer_users: names 257"),
            "{lines:?}"
        );
    }

    #[test]
    fn the_machine_knows_users_groups_and_files() {
        let keys =
            "admin_users = [\"no-such-user-here\"]\nobserver_groups = [\"no-such-group-here\"]\n";
        let api = with(&format!("{keys}{}", TCP.replace("\"/", "\"/nowhere/"))).unwrap();
        let found = check_host(&api);
        let keys: Vec<&str> = found.iter().map(|mistake| mistake.key.as_str()).collect();
        let expected = [
            "api.admin_users",
            "api.observer_groups",
            "api.certificate",
            "api.key",
            "api.client_ca",
        ];
        assert_eq!(keys, expected);
        assert!(check_host(&with("admin_users = [\"root\", \"123456\"]\n").unwrap()).is_empty());
    }
}
