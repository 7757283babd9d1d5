//! The highest kernel in a directory, for a disk without a boot loader.

use super::entry::BootEntry;
use super::version;

/// What a kernel's file is called before its version.
const KERNEL: &str = "vmlinuz-";

/// Copies that tools keep, which nobody wants to boot.
const LEFT_OVER: [&str; 5] = [".old", ".bak", ".dpkg-tmp", ".dpkg-bak", ".rpmsave"];

/// The kernel of the highest version among the names in a directory, with its initial RAM file system.
pub fn newest(directory: &str, names: &[String]) -> Option<BootEntry> {
    let versions = names.iter().filter_map(|name| name.strip_prefix(KERNEL));
    let versions =
        versions.filter(|version| !version.is_empty() && !LEFT_OVER.iter().any(|end| version.ends_with(end)));
    let version = versions.max_by(|a, b| version::compare(a, b).then_with(|| a.cmp(b)))?;
    // As Debian, Fedora, SUSE and others call it.
    let initrd = [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initrd-{version}"),
        format!("initrd-{version}.img"),
        format!("initramfs-{version}"),
    ]
    .into_iter()
    .find(|name| names.contains(name));
    let path = |name: &str| format!("{directory}/{name}");
    Some(BootEntry {
        title: format!("Linux {version}"),
        kernel: path(&format!("{KERNEL}{version}")),
        initrds: initrd.iter().map(|name| path(name)).collect(),
        arguments: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_with_its_initrd() {
        type Case<'t> = (&'t [&'t str], Option<(&'t str, Option<&'t str>)>);
        let table: [Case<'_>; 6] = [
            (&[], None),
            (&["vmlinuz", "vmlinuz-", "initrd.img-6.1"], None),
            (&["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-10-amd64"], Some(("vmlinuz-6.1.0-10-amd64", None))),
            (
                &["vmlinuz-6.2", "vmlinuz-6.10", "vmlinuz-7.0.old", "initrd.img-6.2", "initrd.img-6.10"],
                Some(("vmlinuz-6.10", Some("initrd.img-6.10"))),
            ),
            (
                &["vmlinuz-0-rescue-1a2b", "vmlinuz-6.11.4", "initramfs-6.11.4.img"],
                Some(("vmlinuz-6.11.4", Some("initramfs-6.11.4.img"))),
            ),
            (&["vmlinuz-lts", "initramfs-lts"], Some(("vmlinuz-lts", Some("initramfs-lts")))),
        ];
        for (names, expected) in table {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = newest("/boot", &names).map(|entry| (entry.kernel, entry.initrds));
            let expected = expected.map(|(kernel, initrd)| {
                (format!("/boot/{kernel}"), initrd.iter().map(|initrd| format!("/boot/{initrd}")).collect())
            });
            assert_eq!(found, expected, "{names:?}");
        }
    }
}
