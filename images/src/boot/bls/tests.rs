use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

impl Variables for BTreeMap<&str, &str> {
    fn value(&self, name: &str) -> &str {
        self.get(name).copied().unwrap_or_default()
    }
}

const ENTRY: &str = "\
# A comment
title      Fedora Linux (6.11.4-301.fc41.x86_64) 41
version    6.11.4-301.fc41.x86_64
linux      /vmlinuz-6.11.4-301.fc41.x86_64
initrd\t/initramfs-6.11.4-301.fc41.x86_64.img $tuned_initrd
initrd     /extra.img
options    root=UUID=1a2b ro $kernelopts
options    ${tuned_params} cost=5$ $$
grub_users $grub_users
";

#[test]
fn an_entry_and_its_variables() {
    let entry = Entry::parse("0f0f-6.11.4-301.fc41.x86_64.conf", ENTRY).unwrap();
    assert_eq!(entry.id, "0f0f-6.11.4-301.fc41.x86_64");
    let variables = BTreeMap::from([("kernelopts", "quiet splash"), ("tuned_initrd", "/tuned.img")]);
    assert_eq!(
        entry.boot_entry(&variables).unwrap(),
        BootEntry {
            title: "Fedora Linux (6.11.4-301.fc41.x86_64) 41".into(),
            kernel: "/vmlinuz-6.11.4-301.fc41.x86_64".into(),
            initrds: vec![
                "/initramfs-6.11.4-301.fc41.x86_64.img".into(),
                "/tuned.img".into(),
                "/extra.img".into()
            ],
            arguments: Some("root=UUID=1a2b ro quiet splash  cost=5$ $$".into()),
        }
    );
}

#[test]
fn an_entry_has_a_limit() {
    let long = "x".repeat(4000);
    let many = "x ".repeat(2000);
    let variables = BTreeMap::from([("long", &*long), ("many", &*many)]);
    let error = |text: String| {
        Entry::parse("a.conf", &format!("linux /k\n{text}")).unwrap().boot_entry(&variables).err()
    };
    for (text, expected) in [
        ("initrd /a /b\n".repeat(MAX_INITRDS / 2), None),
        ("initrd /a\n".repeat(MAX_INITRDS + 1), Some(Error::Initrds)),
        (format!("initrd {}", "/a ".repeat(MAX_INITRDS + 1)), Some(Error::Initrds)),
        ("initrd $many".into(), Some(Error::Initrds)),
        (format!("options {}", "$long".repeat(16)), None),
        (format!("options {}", "$long".repeat(17)), Some(Error::Expanded)),
        // Together, whichever lines it is on.
        ("options $long\n".repeat(17), Some(Error::Expanded)),
        ("initrd $long\n".repeat(17), Some(Error::Expanded)),
        (format!("{}options $long", "initrd $long\n".repeat(16)), Some(Error::Expanded)),
        (format!("initrd {}\n", "$many".repeat(20)).repeat(1000), Some(Error::Expanded)),
    ] {
        assert_eq!(error(text.clone()), expected, "{:.60}", text);
    }
}

#[test]
fn what_is_no_entry_for_linux_here() {
    for (name, text) in [
        ("a", "linux /k"),
        ("a.conf", ""),
        ("a.conf", "efi /EFI/other.efi"),
        ("a.conf", "linux /k\narchitecture aa64"),
    ] {
        assert_eq!(Entry::parse(name, text), None, "{name} {text}");
    }
    assert!(Entry::parse("a.conf", "linux /k\narchitecture X64").is_some());
}

fn entries(files: &[(&str, &str)]) -> Vec<Entry> {
    let mut entries: Vec<_> =
        files.iter().map(|(name, text)| Entry::parse(name, &format!("linux /k\n{text}")).unwrap()).collect();
    entries.sort_by(order);
    entries
}

fn ids(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.id.as_str()).collect()
}

#[test]
fn the_order_of_the_specification() {
    let by_name =
        entries(&[("m-6.9.conf", ""), ("m-0-rescue.conf", ""), ("m-6.10.conf", ""), ("m-6.10~rc1.conf", "")]);
    assert_eq!(ids(&by_name), ["m-6.10", "m-6.10~rc1", "m-6.9", "m-0-rescue"]);
    let by_key = entries(&[
        ("z.conf", ""),
        ("a.conf", "sort-key fedora\nmachine-id 1\nversion 6.9"),
        ("b.conf", "sort-key fedora\nmachine-id 1\nversion 6.10"),
        ("c.conf", "sort-key debian\nmachine-id 1\nversion 5.0"),
        ("d+0-3.conf", "sort-key arch\nmachine-id 1\nversion 9"),
        ("e+2.conf", "sort-key fedora\nmachine-id 0\nversion 1"),
    ]);
    assert_eq!(ids(&by_key), ["c", "e", "b", "a", "z", "d"]);
}

#[test]
fn the_default() {
    let entries = entries(&[("m-6.9.conf", ""), ("m-6.10.conf", ""), ("n-1.conf", "")]);
    for (saved, loader, expected) in [
        (None, None, "n-1"),
        (Some(""), None, "n-1"),
        (Some("m-6.9"), None, "m-6.9"),
        (Some("m-6.9.conf"), Some("default n-*"), "m-6.9"),
        (Some("2"), None, "m-6.9"),
        (Some("gone"), None, "n-1"),
        (Some("gone"), Some("timeout 3\ndefault m-*\n"), "m-6.10"),
        (None, Some("default  m-?.9.conf"), "m-6.9"),
        (None, Some("default @saved"), "n-1"),
    ] {
        assert_eq!(default_entry(&entries, saved, loader).unwrap().id, expected, "{saved:?} {loader:?}");
    }
    assert_eq!(default_entry(&[], Some("0"), Some("default *")), None);
}

#[test]
fn patterns() {
    for (pattern, name, expected) in [
        ("", "", true),
        ("*", "", true),
        ("a*c", "abbc", true),
        ("a*c*", "abbcd", true),
        ("a*c", "abcd", false),
        ("?", "", false),
        ("**a**", "bab", true),
        ("a", "ab", false),
    ] {
        assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
    }
    // One that would take for ever if every star tried everything.
    assert!(!matches("*a".repeat(100).as_bytes(), "a".repeat(99).as_bytes()));
}

proptest! {
    #[test]
    fn any_bytes(name in "[a-z+.0-9-]{0,12}", text in "[a-z $\\{\\}\n]{0,100}") {
        if let Some(entry) = Entry::parse(&format!("{name}.conf"), &format!("linux k\ninitrd {text}\noptions {text}")) {
            entry.boot_entry(&BTreeMap::from([("a", "b")])).unwrap();
        }
    }
}

#[test]
fn an_entry_takes_no_more_than_its_file() {
    for key in ["initrd", "options"] {
        let text = format!("linux /k\n{}", format!("{key}\n").repeat(9000));
        let entry = Entry::parse("a.conf", &text).unwrap();
        let taken = entry.initrds.capacity() + entry.options.capacity();
        assert!(taken < 2 * text.len(), "{taken}");
        assert_eq!(entry.boot_entry(&BTreeMap::new()).unwrap().arguments.as_deref(), Some(""));
    }
}

#[test]
fn what_is_compared_has_a_limit() {
    let long = "1.".repeat(30_000);
    let mut texts: Vec<_> = (0..250)
        .map(|number| format!("linux /k\nsort-key a{long}\nmachine-id {long}\nversion {long}{number}"))
        .collect();
    texts.push("linux /k\nsort-key b".into());
    let mut entries: Vec<_> = texts
        .iter()
        .zip(0..)
        .map(|(text, number)| Entry::parse(&format!("{number}.conf"), text).unwrap())
        .collect();
    let begun = std::time::Instant::now();
    entries.sort_by(order);
    assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    // All that is left is the name.
    let ids: Vec<_> = entries.iter().map(|entry| entry.id.parse::<u32>().unwrap()).collect();
    assert_eq!(ids, (0..250).rev().chain([250]).collect::<Vec<_>>());
}
