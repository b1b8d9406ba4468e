//! Who may do what with a file: its permission bits, and its access list where it has one (acl(5)).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Permission to read and write.
pub const READ_WRITE: u32 = 6;
/// Permission to go through a directory.
pub const SEARCH: u32 = 1;
/// Permission to list a directory, to make files in it and to reach them.
pub const ALL: u32 = 7;

/// A user, as files' permissions see him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// His name.
    pub name: String,
    /// His number.
    pub uid: u32,
    /// His groups.
    pub groups: Vec<u32>,
}

impl Who {
    /// This process's user.
    pub fn own() -> Self {
        let uid = nix::unistd::geteuid();
        let found = nix::unistd::User::from_uid(uid).ok().flatten();
        let mut groups: Vec<u32> =
            nix::unistd::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
        groups.push(nix::unistd::getegid().as_raw());
        let name = found.map_or_else(|| uid.to_string(), |user| user.name);
        Self { name, uid: uid.as_raw(), groups }
    }

    /// A user by his name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        let user = nix::unistd::User::from_name(name).ok().flatten()?;
        let c_name = std::ffi::CString::new(name).ok()?;
        let groups = nix::unistd::getgrouplist(&c_name, user.gid).unwrap_or_default();
        let groups = groups.iter().map(|gid| gid.as_raw()).chain([user.gid.as_raw()]).collect();
        Some(Self { name: name.to_owned(), uid: user.uid.as_raw(), groups })
    }

    /// Whether he may do all of `bits` (4 read, 2 write, 1 execute or search) with a file that has this access list.
    pub fn may(&self, file: &Metadata, list: Option<&AccessList>, bits: u32) -> bool {
        let mode = file.mode();
        let grants = |granted: u32| granted & bits == bits;
        if self.uid == 0 {
            return true;
        }
        if file.uid() == self.uid {
            return grants(mode >> 6);
        }
        let Some(list) = list else {
            let granted = if self.groups.contains(&file.gid()) { mode >> 3 } else { mode };
            return grants(granted);
        };
        if let Some((_, granted)) = list.users.iter().find(|(uid, _)| *uid == self.uid) {
            return grants(granted & list.mask);
        }
        let own = list.group.iter().map(|granted| (file.gid(), *granted));
        let groups = own.chain(list.groups.iter().copied());
        let mut of_his = groups.filter(|(gid, _)| self.groups.contains(gid)).peekable();
        if of_his.peek().is_some() {
            return of_his.any(|(_, granted)| grants(granted & list.mask));
        }
        grants(mode)
    }
}

/// An access list beside the permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList {
    /// What the file's own group may.
    group: Option<u32>,
    /// What other users may.
    users: Vec<(u32, u32)>,
    /// What other groups may.
    groups: Vec<(u32, u32)>,
    /// The most that any of these may.
    mask: u32,
}

impl AccessList {
    /// From the extended attribute `system.posix_acl_access`: a version, then entries of tag, permissions and number, all in
    /// little endian. `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, entries) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != 2 {
            return None;
        }
        let mut list = Self { group: None, users: Vec::new(), groups: Vec::new(), mask: 7 };
        let (entries, []) = entries.as_chunks::<8>() else { return None };
        for [tag, tag_high, bits, _, number @ ..] in entries {
            let (bits, number) = (u32::from(*bits), u32::from_le_bytes(*number));
            match u16::from_le_bytes([*tag, *tag_high]) {
                0x02 => list.users.push((number, bits)),
                0x04 => list.group = Some(bits),
                0x08 => list.groups.push((number, bits)),
                0x10 => list.mask = bits,
                // The owner's and all others' are those of the mode.
                _ => {}
            }
        }
        Some(list)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// An attribute with these entries of tag, permissions and number.
    pub fn attribute(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |(tag, bits, number): &(u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &number.to_le_bytes()].concat()
        };
        let entries: Vec<u8> = entries.iter().flat_map(entry).collect();
        [&2_u32.to_le_bytes()[..], &entries].concat()
    }

    fn who(uid: u32, group: u32) -> Who {
        Who { name: "x".into(), uid, groups: vec![group] }
    }

    fn file(mode: u32) -> (tempfile::TempDir, Metadata) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let found = fs::metadata(&file).unwrap();
        (directory, found)
    }

    #[test]
    fn permissions_are_those_of_the_user_in_question() {
        let (_directory, found) = file(0o640);
        let (stranger, no_group) = (found.uid() + 1, found.gid() + 1);
        assert!(who(0, no_group).may(&found, None, 6));
        assert!(who(stranger, found.gid()).may(&found, None, 4));
        assert!(!who(stranger, found.gid()).may(&found, None, 2));
        assert!(!who(stranger, no_group).may(&found, None, 4));
    }

    #[test]
    fn an_access_list_comes_before_the_group_and_its_mask_before_all() {
        // The bits of the group are the mask.
        let (_directory, found) = file(0o660);
        let (anna, berta, staff) = (found.uid() + 1, found.uid() + 2, found.gid() + 1);
        let (owner, group, mask, other) = (0x01, 0x04, 0x10, 0x20);
        let list = |mask_bits| {
            let entries = [
                (owner, 6, u32::MAX),
                (0x02, 6, anna),
                (group, 0, u32::MAX),
                (0x08, 4, staff),
                (mask, mask_bits, u32::MAX),
                (other, 0, u32::MAX),
            ];
            AccessList::parse(&attribute(&entries)).unwrap()
        };
        let all = list(6);
        let may = |who: Who, list: &AccessList, bits| who.may(&found, Some(list), bits);
        assert!(may(who(anna, 9_999_999), &all, 6));
        assert!(!may(who(anna, 9_999_999), &list(4), 6), "the mask takes writing away");
        assert!(
            !may(who(berta, found.gid()), &all, 4),
            "the mode's group bits are not the group's"
        );
        assert!(may(who(berta, staff), &all, 4) && !may(who(berta, staff), &all, 2));
        assert!(!may(who(berta, 9_999_999), &all, 4));
        for wrong in [&[][..], &[2, 0, 0], &[3, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!(AccessList::parse(wrong), None);
        }
    }
}
