//! Who calls, and what he is to us.

use nix::unistd::{Gid, Uid, User, getgrouplist};
use service::config::{Api, Tls};
use std::ffi::CString;
use tokio::net::unix::UCred;
use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read.
    Observer,
    /// Everything.
    Admin,
}

/// Who calls: known from the moment of the connection on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For logs: `uid 1000 gid 1000 pid 77`, `certificate of ops.example`.
    pub name: String,
    /// `None`: nobody whom the configuration names.
    pub role: Option<Role>,
}

/// Who has which role, by the configuration.
#[derive(Clone, Debug)]
pub struct Roles {
    admins: Known,
    observers: Known,
}

#[derive(Clone, Debug, Default)]
struct Known {
    users: Vec<u32>,
    groups: Vec<u32>,
    /// Subject alternative names of certificates.
    names: Vec<String>,
}

impl Roles {
    /// The roles that `api` gives; beside those, the superuser and this process's own user are administrators.
    pub fn new(api: &Api) -> Self {
        let [admins, observers] = api.numbers();
        let names = |of: fn(&Tls) -> &Vec<String>| api.tls.as_ref().map(of).cloned();
        let mut admins = Known {
            users: admins.0,
            groups: admins.1,
            names: names(|tls| &tls.admin_names).unwrap_or_default(),
        };
        admins.users.extend([0, Uid::effective().as_raw()]);
        let observers = Known {
            users: observers.0,
            groups: observers.1,
            names: names(|tls| &tls.observer_names).unwrap_or_default(),
        };
        Self { admins, observers }
    }

    /// True if others than the superuser and this process's own user have a role.
    pub fn name_users(&self) -> bool {
        self.admins.users.len() > 2
            || !self.observers.users.is_empty()
            || !self.admins.groups.is_empty()
            || !self.observers.groups.is_empty()
    }

    /// The process at the other end of a Unix socket. May ask the user database: not to be called where nothing may
    /// block.
    pub fn of_process(&self, peer: &UCred) -> Caller {
        let (uid, gid) = (peer.uid(), peer.gid());
        let pid = peer.pid().map_or_else(String::new, |pid| format!(" pid {pid}"));
        let name = format!("uid {uid} gid {gid}{pid}");
        let by_user = self.role(|known| known.users.contains(&uid));
        if by_user == Some(Role::Admin) {
            return Caller { name, role: by_user };
        }
        let asks = !self.admins.groups.is_empty() || !self.observers.groups.is_empty();
        let groups = if asks { groups_of(uid, gid) } else { Vec::new() };
        let by_group = self.role(|known| known.groups.iter().any(|group| groups.contains(group)));
        Caller { name, role: by_user.max(by_group) }
    }

    /// The owner of a certificate, which was verified.
    pub fn of_certificate(&self, certificate: &CertificateDer<'_>) -> Caller {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else {
            return Caller { name: "unreadable certificate".to_owned(), role: None };
        };
        let dns = certificate.valid_dns_names();
        let names: Vec<&str> = dns.chain(certificate.valid_uri_names()).collect();
        let role = self.role(|known| names.iter().any(|n| known.names.iter().any(|k| k == n)));
        Caller { name: format!("certificate of {}", names.join(", ")), role }
    }

    fn role(&self, is: impl Fn(&Known) -> bool) -> Option<Role> {
        if is(&self.admins) {
            Some(Role::Admin)
        } else {
            is(&self.observers).then_some(Role::Observer)
        }
    }
}

/// All groups of a user; at least the one that the process had.
fn groups_of(uid: u32, gid: u32) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    let listed = name.and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok());
    let mut groups: Vec<u32> = listed.unwrap_or_default().into_iter().map(Gid::as_raw).collect();
    groups.push(gid);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles() -> Roles {
        let known = |users: &[u32], groups: &[u32]| Known {
            users: users.to_vec(),
            groups: groups.to_vec(),
            names: Vec::new(),
        };
        Roles { admins: known(&[7], &[70]), observers: known(&[8], &[80]) }
    }

    #[test]
    fn a_user_has_the_highest_of_his_roles() {
        let roles = roles();
        assert_eq!(roles.role(|known| known.users.contains(&7)), Some(Role::Admin));
        assert_eq!(roles.role(|known| known.users.contains(&8)), Some(Role::Observer));
        assert_eq!(roles.role(|known| known.users.contains(&9)), None);
        assert_eq!(Some(Role::Observer).max(Some(Role::Admin)), Some(Role::Admin));
        assert_eq!(Some(Role::Observer).max(None), Some(Role::Observer));
    }

    #[test]
    fn a_users_groups_hold_the_one_of_the_process() {
        assert!(groups_of(0, 4711).contains(&4711));
        assert_eq!(groups_of(u32::MAX - 5, 12), [12]);
    }
}
