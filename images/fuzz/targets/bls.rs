//! Entries of the Boot Loader Specification: `loader.conf`, GRUB's environment, and entries with their file names.

#![no_main]

use innkeeper_images::boot::bls::{self, Entry};
use innkeeper_images::boot::entry::MAX_INITRDS;
use innkeeper_images::boot::grub::Environment;
use innkeeper_images_fuzz::{check_message, memory, sections};
use libfuzzer_sys::fuzz_target;

/// What an entry becomes at most with its variables, in bytes.
const MOST: usize = 64 << 10;

fuzz_target!(|input: &[u8]| {
    let sections = sections(input);
    let mut sections = sections.iter().map(String::as_str);
    let loader = sections.next().filter(|text| !text.is_empty());
    let block = format!("# GRUB Environment Block\n{}", sections.next().unwrap_or_default());
    let environment = Environment::parse(block.as_bytes()).unwrap();
    let parse = |text: &str| {
        let (name, text) = text.split_once('\n').unwrap_or((text, ""));
        Entry::parse(name, text)
    };
    memory::at_most(memory::MOST, || {
        let mut entries: Vec<_> = sections.filter_map(parse).collect();
        entries.sort_by(bls::order);
        let saved = environment.get("saved_entry");
        let chosen = bls::default_entry(&entries, saved, loader);
        assert_eq!(chosen.is_some(), !entries.is_empty());
        for entry in &entries {
            let first = entry.boot_entry(&environment);
            match &first {
                Ok(boot) => {
                    assert!(!boot.kernel.is_empty() && boot.initrds.len() <= MAX_INITRDS);
                    let length: usize = boot.initrds.iter().map(String::len).sum();
                    assert!(length + boot.arguments.as_ref().unwrap().len() <= MOST);
                    assert!(boot.initrds.iter().all(|path| !path.contains(char::is_whitespace)));
                }
                Err(error) => check_message(error),
            }
            assert_eq!(first, entry.boot_entry(&environment));
        }
    });
});
